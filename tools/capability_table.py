"""Write the capability table of the README from what test runs have shown.

    python tools/capability_table.py results-local/test.json [results/DATE-h200.json]

A test says `@pytest.mark.capability("prefix-cache")`; `pytest --results=FILE` records how it ended.
A cell links to a file whose tests passed.  Where no test ran, the cell says `untested`.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
BEGIN, END = "<!-- table: tools/capability_table.py -->", "<!-- end of table -->"
HEADER = "| capability | CPU | H200 |\n|---|---|---|\n"
ROWS = {
    "llama": "Llama 2 and 3.x, Mistral with its sliding window",
    "qwen": "Qwen2, Qwen2.5, Qwen3 (dense)",
    "rope": "rope scaling: linear, llama3, yarn, dynamic up to the original length",
    "checkpoints": "Hugging Face folders of safetensors, sharded or not",
    "tokenizers": "`tokenizer.json` and sentencepiece; text that never shows half a character",
    "bfloat16": "bfloat16 weights and KV pages",
    "generate": "`Engine.generate`, `stream`, `chat`, and their async forms",
    "score": "`Engine.score`: log-probabilities of given continuations",
    "sampling": "temperature, top-k, top-p, min-p, penalties, bias, bad words, seeds, n > 1",
    "logprobs": "log-probabilities of outputs and prompts",
    "stop": "stop strings and stop tokens, with ids, text and log-probabilities aligned",
    "invariance": "the same tokens alone, in any batch, chunk size, cache state",
    "chunked-prefill": "long prompts in chunks, mixed with decoding",
    "prefix-cache": "prompts that begin alike are computed once",
    "preemption": "when pages run out, somebody waits and nobody's output changes",
    "priorities": "priorities that age, deadlines, a bounded queue",
    "warm-start": "a second start compiles nothing; after ready nothing compiles",
    "grpc": "gRPC: unary and streams, health, reflection",
    "cancellation": "cancel, abort, disconnect and deadline free their pages",
    "security": "TLS, mTLS, bearer tokens",
    "isolation": "a malformed or failing request ends alone, with a typed error",
    "drain": "SIGTERM finishes what runs and refuses what is new",
    "metrics": "Prometheus metrics, under our names and vLLM's",
    "cli": "`rtp-jax generate, chat, serve, info, plan, doctor`",
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
    lines = [f"| {text} | {cell(name, cpu)} | {cell(name, h200)} |" for name, text in ROWS.items()]
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
