"""How good is rtp-tiny?  Loss on held-out text and accuracy on tasks never trained on.

An answer is right when every token of it, the end token included, is the most likely one after
all before it: exactly when greedy decoding gives this answer.  So one forward pass scores a task.

    python -m tools.rtp_tiny.evaluate     rewrites eval.json of the model in rtp_jax/assets
"""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from jax import Array

from tools.rtp_tiny.batches import encode_texts
from tools.rtp_tiny.corpus import held_out_sample
from tools.rtp_tiny.export import ASSETS, read_params
from tools.rtp_tiny.model import TinyConfig, forward
from tools.rtp_tiny.tasks import DRAWERS, draw_task, render
from tools.rtp_tiny.tokenizer import END_ID, EOS_ID, PAD_ID, load_tokenizer

EVALUATION_SEED = 2**31  # training uses (seed, step) with seeds far below
ROWS, LENGTH = 32, 256


def evaluate(
    params: dict[str, Array],
    config: TinyConfig,
    tokenizer: sentencepiece.SentencePieceProcessor,
    *,
    num_cases: int,
) -> dict[str, object]:
    """Return held-out losses and the accuracy of each kind of task."""
    tasks = {
        kind: task_accuracy(params, config, tokenizer, kind=kind, num_cases=num_cases)
        for kind in DRAWERS
    }
    return {
        "held_out": held_out_loss(params, config, tokenizer),
        "num_cases_of_each_task": num_cases,
        "task_accuracy": tasks,
    }


def held_out_loss(
    params: dict[str, Array],
    config: TinyConfig,
    tokenizer: sentencepiece.SentencePieceProcessor,
    *,
    length: int = LENGTH,
) -> dict[str, float]:
    """Score the held-out sample in windows of `length` tokens; each window starts cold."""
    texts = encode_texts(tokenizer, held_out_sample())
    windows = [text[at : at + length] for text in texts for at in range(0, len(text), length)]
    rows = ROWS * LENGTH // length
    nats, tokens = 0.0, 0
    for first in range(0, len(windows), rows):
        block = np.full((rows, length), PAD_ID, np.int32)
        for row, window in enumerate(windows[first : first + rows]):
            block[row, : len(window)] = window
        scores = np.asarray(_log_probabilities(params, config, jnp.asarray(block)))
        real = block[:, 1:] != PAD_ID
        nats -= float(scores[real].sum())
        tokens += int(real.sum())
    # Each token stands for the bytes of the sample's average token.
    num_bytes = sum(len(text.encode()) for text in held_out_sample())
    num_tokens = sum(len(text) for text in texts)
    bits_per_byte = nats / tokens / math.log(2) * num_tokens / num_bytes
    return {
        "nats_per_token": round(nats / tokens, 4),
        "bits_per_byte": round(bits_per_byte, 4),
        "tokens": tokens,
        "window": length,
    }


def task_accuracy(
    params: dict[str, Array],
    config: TinyConfig,
    tokenizer: sentencepiece.SentencePieceProcessor,
    *,
    kind: str,
    num_cases: int,
) -> float:
    """Return the share of right answers; half the cases are plain, half are chats."""
    rng = np.random.default_rng((EVALUATION_SEED, list(DRAWERS).index(kind)))
    right = scored = 0
    while scored < num_cases:
        block = np.full((ROWS, LENGTH), PAD_ID, np.int32)
        answers = []
        while len(answers) < ROWS:
            chat = len(answers) % 2 == 0
            prompt, completion = render(draw_task(kind, rng), chat=chat)
            question = tokenizer.encode(prompt)
            answer = [*tokenizer.encode(completion), END_ID if chat else EOS_ID]
            if len(question) + len(answer) > LENGTH:
                continue
            end = len(question) + len(answer)
            block[len(answers), :end] = question + answer
            answers.append(slice(len(question) - 1, end - 1))
        hits = np.asarray(_greedy_hits(params, config, jnp.asarray(block)))
        right += sum(bool(hits[row, answer].all()) for row, answer in enumerate(answers))
        scored += ROWS
    return round(right / scored, 4)


@functools.partial(jax.jit, static_argnames="config")
def _log_probabilities(params: dict[str, Array], config: TinyConfig, block: Array) -> Array:
    """Return the log probability [rows, length - 1] of each token after the first."""
    log_probabilities = jax.nn.log_softmax(_logits(params, config, block)[:, :-1])
    return jnp.take_along_axis(log_probabilities, block[:, 1:, None], axis=-1)[..., 0]


@functools.partial(jax.jit, static_argnames="config")
def _greedy_hits(params: dict[str, Array], config: TinyConfig, block: Array) -> Array:
    """Tell for each token after the first whether it is the most likely one."""
    return jnp.argmax(_logits(params, config, block), axis=-1)[:, :-1] == block[:, 1:]


def _logits(params: dict[str, Array], config: TinyConfig, block: Array) -> Array:
    positions = jnp.broadcast_to(jnp.arange(block.shape[1]), block.shape)
    return forward(params, config, block, jnp.zeros_like(block), positions)


def main() -> None:
    """Evaluate the model in rtp_jax/assets and write its `eval.json`."""
    config, params = read_params(ASSETS)
    tokenizer = load_tokenizer(ASSETS / "tokenizer.model")
    report = evaluate(params, config, tokenizer, num_cases=256)
    Path(ASSETS / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
