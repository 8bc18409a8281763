"""Write the capability table of the README from what test runs have shown.

    python tools/capability_table.py results-local/test.json [results/DATE-h200.json]

A test says `@pytest.mark.capability("prefix cache")`; `pytest --results=FILE` records how it ended.
A cell links to a file whose tests passed.  Where no test ran, the cell says `untested`.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
BEGIN, END = "<!-- table: tools/capability_table.py -->", "<!-- end of table -->"
HEADER = "| capability | CPU | H200 |\n|---|---|---|\n"
ROWS = {  # the name that tests use, and what it means
    "Llama": "Llama 2 and 3.x",
    "Mistral": "with its sliding window",
    "Qwen": "Qwen2, Qwen2.5 and Qwen3, dense",
    "rope scaling": "linear, llama3, yarn; dynamic up to the original length",
    "safetensors": "Hugging Face folders, one file or many, float32, bfloat16, float16",
    "load over a mesh": "every byte of a checkpoint is read once, by one device or process",
    "tensor parallelism": "one model on several devices of a process; tiers and pools of any sizes",
    "tokenizers": "`tokenizer.json` and sentencepiece; never half a character",
    "chat templates": "in a sandbox",
    "bfloat16": "weights and KV pages",
    "quantized KV": "int8 and fp8 pages, a scale for each head of a token, by layer if asked",
    "quantized weights": "int8, int8_dynamic, int4 and fp8, quantized while they load",
    "quantized checkpoints": "GPTQ, AWQ, compressed-tensors and fp8, loaded as they are",
    "native kernels": "C++ for AMX, AVX-512, AVX2 or any CPU, built at first use",
    "GPU kernels": "Mosaic: attention over pages, int8, int4 and fp8 products; compiled in CI",
    "Engine.generate": "lists of texts or token ids; order kept",
    "streaming": "tokens as they arrive",
    "async API": "deltas, cumulative or final outputs",
    "scoring": "log-probabilities of given continuations",
    "sampling": "temperature, top-k, top-p, min-p, penalties, bias, bad words, seeds, n > 1",
    "logprobs": "of outputs and of prompts",
    "stop strings": "ids, text and log-probabilities end together",
    "continuous batching": "the same tokens alone and together (float32)",
    "deterministic": "the same tokens in any dtype",
    "chunked prefill": "long prompts beside sequences that decode",
    "prefix cache": "prompts that begin alike are computed once",
    "KV tiers": "host memory, a local disk and Redis below the device; load or compute, measured",
    "prefill and decode pools": "pages travel while computed; whatever fails costs time only",
    "preemption": "when pages run out, somebody waits and no output changes",
    "priorities": "with ageing, and a bounded queue",
    "deadlines": "end a request wherever it is",
    "abort": "frees pages at once, even before the request arrives",
    "second start compiles nothing": "and nothing compiles after ready",
    "typed errors": "a bad request ends alone",
    "fault walls": "a fault of ours ends the request it is about, and no other",
    "gRPC": "unary and streams, tokenize, score, reflection",
    "HTTP": "OpenAI's completions and chat, streams, log-probabilities, usage",
    "health": "means progress, not only a process",
    "TLS and tokens": "TLS, mTLS, bearer tokens",
    "drain": "SIGTERM finishes what runs and refuses what is new",
    "metrics": "Prometheus, under our names and vLLM's",
    "resuming": "an answer that was cut goes on elsewhere with the tokens it would have had",
    "router": "many workers behind one address; a lost worker or router costs no token",
    "checkpoint tools": "`rtp-jax-ckpt inspect, convert, verify, merge-lora, quantize`",
    "calibration": "GPTQ and AWQ from a text, layer by layer, resumable after a kill",
    "command line": "`rtp-jax generate, chat, serve, route, status, bench, info, plan, ...`",
    "benchmarks": "`rtp-jax bench latency, throughput, serve, load`, gRPC and HTTP",
}


def cell(name: str, record: dict | None) -> str:
    """Say what one run has shown of one capability."""
    tests = [row for row in record["capabilities"] if row["name"] == name] if record else []
    ran = [row for row in tests if row["outcome"] != "skipped"]
    if not ran:
        return "untested"
    bad = [row["test"] for row in ran if row["outcome"] != "passed"]
    file = (bad or [row["test"] for row in ran])[0].partition("::")[0]
    return f"[{'fails' if bad else 'tested'}]({file})"


def table(cpu: dict | None, h200: dict | None) -> str:
    """Draw the table, one row for each capability."""
    lines = [
        f"| {name}: {text} | {cell(name, cpu)} | {cell(name, h200)} |"
        for name, text in ROWS.items()
    ]
    return HEADER + "\n".join(lines) + "\n"


def replaced(page: str, new: str) -> str:
    """Put a new table between the markers of a page."""
    return page.partition(BEGIN)[0] + f"{BEGIN}\n{new}{END}" + page.partition(END)[2]


def main(cpu: Path, h200: Path | None = None) -> None:
    """Read the records of one or two runs and rewrite the README."""
    records = [json.loads(Path(path).read_text()) if path else None for path in (cpu, h200)]
    PAGE.write_text(replaced(PAGE.read_text(), table(*records)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
