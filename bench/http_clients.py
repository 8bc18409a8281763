"""Do clients that others wrote work with the HTTP door, and do they count as the gRPC door does?

    rtp-jax serve rtp-tiny --port 50051 --http-port 8000
    python -m bench.http_clients --openai ENV --aiperf ENV [--record FILE]

ENV are virtual environments with `pip install openai` and `pip install aiperf`, unmodified.  Every
prompt that they send is also asked over gRPC; the table shows failed calls and counts that differ,
and any of either makes the exit code 1.  Read next: `http_openai_client.py`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench.record import machine, write_record
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions

ROOT = Path(__file__).parent.parent
MAX_TOKENS = 12
NUM_PROFILED, CONCURRENCY, LENGTHS = 40, 4, (32, 8)  # prompt and output tokens
TEXTS = ("Question: What is 27 + 48?\nAnswer:", "def f(x):\n", "Ä 世界", "word " * 60)
WRONG = [
    ({"model": "nobody", "prompt": "a"}, "NotFoundError RTPJ-5012"),
    ({"model": "rtp-tiny", "prompt": "a", "temperature": 2.5}, "BadRequestError RTPJ-1003"),
    ({"model": "rtp-tiny", "prompt": "a", "suffix": "b"}, "BadRequestError RTPJ-5406"),
]


def main() -> int:
    """Run the clients that were given, print a table, return 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--grpc", default="127.0.0.1:50051")
    parser.add_argument("--openai", metavar="ENV")
    parser.add_argument("--aiperf", metavar="ENV")
    parser.add_argument("--tokenizer", default=str(ROOT / "rtp_jax/assets/rtp-tiny"))
    parser.add_argument("--record", metavar="FILE")
    options = parser.parse_args()
    with Client(options.grpc) as client:
        rows = []
        if options.openai:
            rows.append(with_openai(options, client))
        if options.aiperf:
            rows.append(with_aiperf(options, client))
    print(f"{machine()}\n{'client':<16}{'calls':>8}{'failed':>8}{'counts that differ':>20}")
    for row in rows:
        print(f"{row['client']:<16}{row['calls']:>8}{row['failed']:>8}{len(row['differ']):>20}")
        print("".join(f"  {each}\n" for each in row["differ"]), end="")
    if options.record:
        write_record(options.record, "http_clients", ("rtp_jax", "aiohttp"), {"clients": rows})
    return int(any(row["failed"] or row["differ"] for row in rows) or not rows)


def with_openai(options: argparse.Namespace, client: Client) -> dict:
    """Ask texts, token ids and conversations with the `openai` client."""
    ids = [client.tokenize(text) for text in TEXTS]
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    asked = {"model": "rtp-tiny", "temperature": 0, "max_tokens": MAX_TOKENS}
    calls = [asked | {"prompt": prompt} for prompt in (*TEXTS, *ids)]
    calls += [asked | {"messages": messages} for messages in chats]
    task = {"base_url": f"{options.url}/v1", "api_key": "none", "calls": calls}
    ran = subprocess.run(
        [
            Path(options.openai) / "bin" / "python",
            Path(__file__).with_name("http_openai_client.py"),
        ],
        input=json.dumps(task | {"wrong": [wrong for wrong, _ in WRONG]}),
        capture_output=True,
        text=True,
    )
    if ran.returncode != 0:
        print(ran.stderr, file=sys.stderr)
        return {"client": "openai", "calls": 2 * len(calls), "failed": 2 * len(calls), "differ": []}
    found = json.loads(ran.stdout)
    expected = [over_grpc(client, call, ignore_eos=False, length=MAX_TOKENS) for call in calls]
    differ = [
        f"{each} but gRPC {expected[each['number']]}"
        for each in found["answers"]
        if any(each[name] != value for name, value in expected[each["number"]].items())
    ]
    differ += [
        f"{got} but {right} is right"
        for got, (_, right) in zip(found["refusals"], WRONG, strict=True)
        if got != right
    ]
    row = {"client": f"openai {found['version']}", "calls": 2 * len(calls) + len(WRONG)}
    return row | {"failed": 0, "differ": differ}


def with_aiperf(options: argparse.Namespace, client: Client) -> dict:
    """Load the door with aiperf, which makes up its own conversations."""
    isl, osl = LENGTHS
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(options.aiperf) / "bin" / "aiperf", "profile", "--model", "rtp-tiny"]
        command += ["--url", options.url, "--endpoint-type", "chat", "--streaming"]
        command += ["--tokenizer", options.tokenizer, "--concurrency", str(CONCURRENCY)]
        command += ["--request-count", str(NUM_PROFILED), "--isl", str(isl), "--osl", str(osl)]
        command += ["--extra-inputs", "ignore_eos:true", "--ui", "simple"]
        command += ["--output-artifact-dir", folder]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode != 0:
            print(ran.stdout[-3000:], ran.stderr[-3000:], file=sys.stderr)
            return {"client": "aiperf", "calls": NUM_PROFILED, "failed": NUM_PROFILED, "differ": []}
        records = read_lines(Path(folder, "profile_export.jsonl"))
        sessions = json.loads(Path(folder, "inputs.json").read_text())["data"]
        summary = json.loads(Path(folder, "profile_export_aiperf.json").read_text())
    asked = {each["session_id"]: each["payloads"][0] for each in sessions}
    differ, num_good = [], 0
    for record in records:
        if record.get("error"):
            continue
        num_good += 1
        call, metrics = asked[record["metadata"]["conversation_id"]], record["metrics"]
        counts = {
            "prompt_tokens": metrics["usage_prompt_tokens"]["value"],
            "output_tokens": metrics["usage_completion_tokens"]["value"],
        }
        expected = over_grpc(client, call, ignore_eos=True, length=osl)
        if counts != {name: expected[name] for name in counts}:
            differ.append(f"{counts} but gRPC {expected}")
    return {
        "client": f"aiperf {summary['aiperf_version']}",
        "calls": NUM_PROFILED,
        "failed": NUM_PROFILED - num_good,
        "differ": differ,
    }


def over_grpc(client: Client, call: dict, *, ignore_eos: bool, length: int) -> dict:
    """Ask the same over gRPC: the text, and how many tokens there are."""
    if "messages" in call:
        prompt: object = {"messages": call["messages"]}
    else:
        text_or_ids = call["prompt"]
        is_text = isinstance(text_or_ids, str)
        prompt = text_or_ids if is_text else {"prompt_token_ids": text_or_ids}
    params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=ignore_eos)
    output = client.generate(prompt, params, RequestOptions(return_prompt_token_ids=True))
    completion = output.outputs[0]
    return {
        "text": completion.text,
        "prompt_tokens": len(output.prompt_token_ids),
        "output_tokens": len(completion.token_ids),
    }


def read_lines(path: Path) -> Iterable[dict]:
    """Read a file of one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
