"""The flags that measurements share: which requests are made, and of which server."""

import argparse

from rtp_jax.benchmark.lengths import FORMS, parse_lengths
from rtp_jax.benchmark.options import (
    Objective,
    count,
    json_object,
    not_together,
    number,
    objective,
    refused,
)
from rtp_jax.benchmark.targets import Address, Asking, parse_address
from rtp_jax.benchmark.trace import Trace, read_trace
from rtp_jax.benchmark.workload import Workload
from rtp_jax.serving.auth import read_tokens

NUM_REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = "100", "512", "64"


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Add the flags of prompts and outputs."""
    group = parser.add_argument_group("workload", f"lengths are {FORMS}; token ids are random")
    group.add_argument(
        "--num-requests", metavar="N", help=f"default: {NUM_REQUESTS}; of a trace: all of it"
    )
    group.add_argument("--prompt-tokens", metavar="LENGTHS", help=f"default: {PROMPT_TOKENS}")
    group.add_argument(
        "--output-tokens", metavar="LENGTHS", help=f"default: {OUTPUT_TOKENS}; a trace's own first"
    )
    group.add_argument(
        "--shared-prefix", metavar="SHARE", help="share of each prompt that is the same for all"
    )
    group.add_argument("--trace", metavar="FILE", help="JSON lines: lengths, prompts, arrivals")
    group.add_argument(
        "--length-scale", metavar="X", help="tokens for each token of the trace; default: 1"
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the server and of how it is asked."""
    parser.add_argument(
        "--target", required=True, metavar="URL", help="grpc[s]://HOST:PORT or http[s]://HOST:PORT"
    )
    parser.add_argument("--model", default="", help="default: what the server serves")
    parser.add_argument("--token-file", metavar="FILE", help="its first line is the bearer token")
    parser.add_argument("--tls-ca", metavar="FILE", help="PEM of who signed the server's name")
    parser.add_argument("--temperature", default="0", metavar="X", help="default: 0, greedy")
    parser.add_argument(
        "--stop-at-eos", action="store_true", help="outputs may end before their length"
    )
    parser.add_argument("--timeout", default="600", metavar="S", help="of a request; default: 600")
    parser.add_argument("--wait", default="0", metavar="S", help="for a server that still starts")
    parser.add_argument("--warmup", default="1", metavar="N", help="requests before; default: 1")
    parser.add_argument("--slo", metavar="LIMITS", help="count goodput: ttft=0.5,tpot=0.05")
    parser.add_argument(
        "--seed", default="0", metavar="N", help="of all random numbers; default: 0"
    )
    parser.add_argument("--vocab-size", metavar="N", help="of token ids; default: the server's")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="whose vocabulary it is")
    parser.add_argument("--as-text", action="store_true", help="send prompts as text")
    parser.add_argument("--extra-body", metavar="JSON", help="more fields of each HTTP request")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")


def address_of(parsed: argparse.Namespace) -> Address:
    """Read where the server is, and what it wants to know of us."""
    token = read_tokens(parsed.token_file)[0] if parsed.token_file else None
    address = parse_address(parsed.target, token=token, ca=parsed.tls_ca)
    if parsed.tls_ca is not None and address.scheme in ("grpc", "http"):
        raise not_together(["--target", "--tls-ca"], f"{address.scheme}:// has no TLS; add an s")
    return address


def asking_of(parsed: argparse.Namespace, address: Address) -> Asking:
    """Read how requests are asked."""
    extra = {}
    if parsed.extra_body is not None:
        if address.scheme.startswith("grpc"):
            raise not_together(["--target", "--extra-body"], "gRPC has no body; leave it out")
        extra = json_object("--extra-body", parsed.extra_body)
    return Asking(
        model=parsed.model,
        temperature=number("--temperature", parsed.temperature, above=-1e-9, most=2.0),
        ignore_eos=not parsed.stop_at_eos,
        timeout_s=number("--timeout", parsed.timeout),
        extra_body=extra,
    )


def objective_of(parsed: argparse.Namespace) -> Objective | None:
    """Read the objective, if there is one."""
    return None if parsed.slo is None else objective("--slo", parsed.slo)


def workload_of(parsed: argparse.Namespace, *, seed: int = 0, time_scale: float = 1.0) -> Workload:
    """Read the flags of `add_workload`.

    Raises:
      InvalidArgument: one cannot be read, two contradict each other, or the trace is wrong.
    """
    trace = _trace(parsed, time_scale)
    share = 0.0
    if parsed.shared_prefix is not None:
        share = number("--shared-prefix", parsed.shared_prefix, most=1.0)
    return Workload(
        num_requests=count("--num-requests", parsed.num_requests or NUM_REQUESTS),
        prompt_tokens=parse_lengths("--prompt-tokens", parsed.prompt_tokens or PROMPT_TOKENS),
        output_tokens=parse_lengths("--output-tokens", parsed.output_tokens or OUTPUT_TOKENS),
        shared_prefix=share,
        trace=trace,
        seed=seed,
    )


def described(workload: Workload, parsed: argparse.Namespace) -> dict[str, object]:
    """Say what a workload is, for the record."""
    made = {
        "num_requests": workload.num_requests,
        "prompt_tokens": parsed.prompt_tokens or PROMPT_TOKENS,
        "shared_prefix": workload.shared_prefix,
    }
    if workload.trace is not None:
        made = {
            "num_requests": len(workload.trace.lines),
            "trace": parsed.trace,
            "length_scale": float(parsed.length_scale or 1),
        }
    return made | {"output_tokens": parsed.output_tokens or OUTPUT_TOKENS, "seed": workload.seed}


def _trace(parsed: argparse.Namespace, time_scale: float) -> Trace | None:
    if parsed.trace is None:
        if parsed.length_scale is not None:
            raise not_together(["--length-scale"], "it is for a --trace, and none is given")
        return None
    for flag, given in (
        ("--prompt-tokens", parsed.prompt_tokens),
        ("--shared-prefix", parsed.shared_prefix),
    ):
        if given is not None:
            raise not_together(["--trace", flag], "a trace has its own prompts; leave one out")
    scale = number("--length-scale", parsed.length_scale or "1", most=1000)
    most = None if parsed.num_requests is None else count("--num-requests", parsed.num_requests)
    trace = read_trace(parsed.trace, most=most, length_scale=scale, time_scale=time_scale)
    if most is not None and len(trace.lines) < most:
        raise refused("--num-requests", most, f"at most {len(trace.lines)}, which the trace has")
    return trace
