"""Writes `rtp_tiny.json`: what transformers continues with, greedily, from the built-in model.

    python tests/golden/make_rtp_tiny.py

Runs in an environment of its own (torch for CPUs, transformers, sentencepiece), in float32.
"""

import json
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "rtp_jax" / "assets" / "rtp-tiny"
NUM_TOKENS = 64
TEXTS = [
    "The for statement is used to",
    "def main():\n    ",
    "Return a list of",
    "Question: What is 3 + 9?\nAnswer:",
]


def main() -> None:
    """Continue every prompt and write ids and text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    prompts = TEXTS + [case["prompt"] for case in json.loads((MODEL / "demo.json").read_text())]
    cases = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            whole = model.generate(
                ids, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False
            )
        more = whole[0, ids.shape[1] :].tolist()
        cases.append(
            {
                "prompt": prompt,
                "prompt_token_ids": ids[0].tolist(),
                "token_ids": more,
                "text": tokenizer.decode(more, skip_special_tokens=True),
            }
        )
    golden = {"transformers": transformers.__version__, "torch": torch.__version__, "cases": cases}
    (HERE / "rtp_tiny.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
