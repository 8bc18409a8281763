"""How differently do two models speak?  Perplexity, greedy agreement and KL divergence on a text.

The text is cut into windows, and both models are asked for the log-probabilities of every token of
each.  Of a distribution the engine tells the most likely tokens; the divergence is that of these
and of all others taken together, which is never more than the true one.

Read next: `verify.py`.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_tools.engine_door import start_engine
from checkpoints_tools.report import Report
from rtp_jax.errors import CheckpointError, InvalidArgument
from rtp_jax.sampling_params import MAX_LOGPROBS, OutputKind, SamplingParams
from rtp_jax.text.tokenizer import load_tokenizer

MAX_TEXT_BYTES = 64 << 20
DEFAULT_WINDOW, DEFAULT_TOKENS = 256, 16384
SEQUENCES = 8  # at once
LEAST = 1e-12  # the smallest probability of all other tokens together


@dataclass(frozen=True, slots=True)
class Window:
    """What one model says about a window: for each position from the second on."""

    logprobs: list[float]  # of the token that is there
    likely: list[dict[int, float]]  # the most likely tokens, and the one that is there


@dataclass(frozen=True, slots=True)
class Quality:
    """The answer."""

    fields: dict[str, Any]
    passed: bool

    @property
    def words(self) -> list[str]:
        """Lay it out for a reader."""
        first, second = self.fields["perplexity"]
        return [
            f"perplexity    {first:.4f} and {second:.4f} ({self.fields['tokens']} tokens)",
            f"agreement     {self.fields['greedy_agreement']:.2%} of the most likely tokens",
            f"KL            {self.fields['kl']:.3g} nats a token"
            f" (of the {MAX_LOGPROBS} most likely tokens and the rest)",
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the comparison by text."""
    group = parser.add_argument_group("comparison by text")
    group.add_argument("--text", metavar="FILE", help="run both models over this text")
    group.add_argument(
        "--text-only", action="store_true", help="tensors may differ; only the text decides"
    )
    group.add_argument("--window", type=int, default=DEFAULT_WINDOW, help="tokens (%(default)s)")
    group.add_argument("--max-tokens", type=int, default=DEFAULT_TOKENS, help="(%(default)s)")
    group.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    group.add_argument("--compile-cache", metavar="FOLDER", help="of compiled programs")
    group.add_argument("--min-agreement", type=float, default=0.0, metavar="SHARE")
    group.add_argument("--max-kl", type=float, default=math.inf, metavar="NATS")
    group.add_argument(
        "--max-perplexity-ratio", type=float, default=math.inf, metavar="X", help="of B to A"
    )


def compare(parsed: argparse.Namespace, first: Path, second: Path, report: Report) -> Quality:
    """Run two models over a text, one after the other."""
    if not 2 <= parsed.window <= parsed.max_tokens:
        raise InvalidArgument(
            f"RTPJ-3618 TEXT_OPTIONS_INVALID: --window {parsed.window} must be from 2 to"
            f" --max-tokens {parsed.max_tokens}. Change one of them."
        )
    path = Path(parsed.text)
    text = as_text(path, text_bytes(path))
    ids = load_tokenizer(first).encode(text, allow_special=False)[: parsed.max_tokens]
    if len(ids) < 2:
        raise InvalidArgument(
            f"RTPJ-3618 TEXT_OPTIONS_INVALID: {path} has {len(ids)} tokens, at least 2 are needed."
            " Give a longer text."
        )
    ours, theirs = (_spoken(folder, ids, parsed, report) for folder in (first, second))
    return judge(measure(ours, theirs), parsed)


def judge(measured: dict[str, Any], parsed: argparse.Namespace) -> Quality:
    """Say whether what was measured is within the limits that were given."""
    first, second = measured["perplexity"]
    passed = measured["greedy_agreement"] >= parsed.min_agreement
    passed &= measured["kl"] <= parsed.max_kl
    passed &= second / first <= parsed.max_perplexity_ratio
    return Quality({**measured, "perplexity_ratio": second / first, "passed": passed}, passed)


def text_bytes(path: Path) -> bytes:
    """Read a file that an option names.

    Raises:
      CheckpointError: RTPJ-3635, it cannot be read, is no ordinary file, or is too large.
    """
    try:
        if not path.exists():
            reason = "it does not exist"
        elif not path.is_file():
            reason = "it is no ordinary file"
        elif (size := path.stat().st_size) > MAX_TEXT_BYTES:
            reason = f"it has {size} bytes, at most {MAX_TEXT_BYTES} are read"
        else:
            return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
    raise CheckpointError(
        f"RTPJ-3635 TEXT_UNREADABLE: {path}: {reason}. Name a file of text that can be read."
    )


def as_text(path: Path, data: bytes) -> str:
    """Decode what a file holds, which must be UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise CheckpointError(
            f"RTPJ-3619 TEXT_NOT_UTF8: {path}: byte {reason.start} is not UTF-8. Give a text file."
        ) from None


def _spoken(
    folder: Path, ids: list[int], parsed: argparse.Namespace, report: Report
) -> list[Window]:
    """Ask one model about all windows of a text."""
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=MAX_LOGPROBS,
        detokenize=False,
        output_kind=OutputKind.FINAL_ONLY,
    )

    def say(line: str) -> None:
        report.event("engine", line, line=line, folder=str(folder))

    options = {
        "dtype": parsed.dtype,
        "max_model_len": parsed.window + 1,
        "max_num_seqs": SEQUENCES,
        "deterministic": True,  # compiles one step instead of one for each size
        "compile_cache": parsed.compile_cache,
    }
    starts = range(0, len(ids) - 1, parsed.window)  # a single token at the end tells nothing
    prompts = [{"prompt_token_ids": ids[start : start + parsed.window]} for start in starts]
    with start_engine(str(folder), say, **options) as engine:
        outputs = engine.generate(prompts, params, use_tqdm=False)
    return [_window(output.prompt_token_ids, output.prompt_logprobs) for output in outputs]


def _window(ids: Sequence[int], tables: Sequence[Any]) -> Window:
    entries = list(zip(ids, tables, strict=True))[1:]
    likely = [{token: each.logprob for token, each in table.items()} for _, table in entries]
    return Window([table[token] for (token, _), table in zip(entries, likely, strict=True)], likely)


def measure(ours: Sequence[Window], theirs: Sequence[Window]) -> dict[str, Any]:
    """Compare what two models say about the same tokens.

    Returns:
      `perplexity` of both, `greedy_agreement` (share of positions where both find the same token
      most likely), `kl` of the second from the first in nats a token, and `tokens`.
    """
    sums = [sum(sum(window.logprobs) for window in windows) for windows in (ours, theirs)]
    pairs = [
        (left, right)
        for one, other in zip(ours, theirs, strict=True)
        for left, right in zip(one.likely, other.likely, strict=True)
    ]
    agreed = [
        max(left, key=left.__getitem__) == max(right, key=right.__getitem__)
        for left, right in pairs
    ]
    return {
        "tokens": len(pairs),
        "perplexity": [math.exp(-total / len(pairs)) for total in sums],
        "greedy_agreement": sum(agreed) / len(pairs),
        "kl": sum(divergence(left, right) for left, right in pairs) / len(pairs),
    }


def divergence(first: dict[int, float], second: dict[int, float]) -> float:
    """Give KL(first, second) over the tokens that both tell, and all others as one."""
    both = [token for token in first if token in second]
    p = np.exp([first[token] for token in both])
    q = np.exp([second[token] for token in both])
    p = np.maximum(np.append(p, 1 - p.sum()), LEAST)
    q = np.maximum(np.append(q, 1 - q.sum()), LEAST)
    return float(np.sum(p * np.log(p / q)))
