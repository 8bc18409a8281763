"""What tests ask of the built-in model, and the two sizes of it that they share programs of."""

import json
from pathlib import Path

import numpy as np

from rtp_jax import Engine, SamplingParams

DEMO = Path(__file__).parents[2] / "rtp_jax" / "assets" / "rtp-tiny" / "demo.json"
QUESTIONS = json.loads(DEMO.read_text())
TWO_PROGRAMS = {"max_num_seqs": 8, "max_num_batched_tokens": 64}  # of 8 and of 64 tokens
ONE_PROGRAM = {"max_num_seqs": 16, "max_num_batched_tokens": 64, "deterministic": True}


def answers_of(engine: Engine) -> list[str]:
    """Return the greedy answers to the questions of the demo."""
    params = [
        SamplingParams(temperature=0.0, max_tokens=one["max_tokens"], stop="\n")
        for one in QUESTIONS
    ]
    outputs = engine.generate([one["prompt"] for one in QUESTIONS], params, use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def num_right(answers: list[str]) -> int:
    """Count the answers that hold what was expected."""
    return sum(one["expect"] in answer for one, answer in zip(QUESTIONS, answers, strict=True))


def logprobs_of(engine: Engine, texts: list[str], window: int | None = None) -> np.ndarray:
    """Return the logprob of each token but the first of each text, or of its first `window`."""
    scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    prompts = [engine.tokenizer.encode(text)[:window] for text in texts]
    outputs = engine.generate(prompts, scored, use_tqdm=False)
    tables = [table for output in outputs for table in output.prompt_logprobs[1:]]
    return np.array([next(iter(table.values())).logprob for table in tables])
