"""How is rtp-tiny trained?  On two CPU cores, in under an hour, by fixed steps.

The number of steps, the data of each step and the learning rates are fixed by constants, so a run
can stop at any checkpoint and go on.  Read `batches.py` for the data, `model.py` for the model.

    python -m tools.rtp_tiny.train        trains in build/rtp-tiny
    python -m tools.rtp_tiny.export       then writes the model to rtp_jax/assets
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from jax import Array

from tools.rtp_tiny.batches import Batch, encode_texts, make_batch
from tools.rtp_tiny.checkpoint import load_checkpoint, save_checkpoint
from tools.rtp_tiny.corpus import documents
from tools.rtp_tiny.evaluate import evaluate
from tools.rtp_tiny.model import TinyConfig, forward
from tools.rtp_tiny.optimizer import TrainState, init_state, update
from tools.rtp_tiny.tokenizer import load_tokenizer, train_tokenizer

SEED = 0
NUM_STEPS = 1900
# The share of the learning rates at some steps; it changes linearly between them.
RATES = {
    0: 0.033,
    29: 1.0,
    800: 1.0,
    1000: 0.5556,
    1180: 0.5556,
    1300: 0.2778,
    1320: 0.5556,
    1600: 0.5556,
    NUM_STEPS: 0.0,
}
ROWS, ROW_LENGTH = 16, 256
LOG_EVERY, SAVE_EVERY, EVALUATE_EVERY = 20, 100, 600


def rate_scale(step: int) -> float:
    """Return the share of the learning rates: warm up, hold, then fall to zero."""
    return float(np.interp(step, list(RATES), list(RATES.values())))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(
    state: TrainState, config: TinyConfig, batch: Batch, scale: Array
) -> tuple[TrainState, dict[str, Array]]:
    """Descend once; also report the mean loss of text and of answers."""

    def loss_of(params: dict[str, Array]) -> tuple[Array, Array]:
        logits = forward(params, config, batch.tokens, batch.segments, batch.positions)
        picked = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - picked
        return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights), losses

    (_, losses), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    is_text, is_answer = batch.weights == 1, batch.weights > 1
    report = {
        "text_loss": jnp.sum(losses * is_text) / jnp.sum(is_text),
        "answer_loss": jnp.sum(losses * is_answer) / jnp.sum(is_answer),
    }
    return update(state, gradients, scale), report


def prepare_tokenizer(work: Path) -> sentencepiece.SentencePieceProcessor:
    """Train the tokenizer on the lines of the training text, unless the folder has one."""
    path = work / "tokenizer.model"
    if not path.exists():
        lines = [line for _, text in documents(held_out=False) for line in text.split("\n")]
        train_tokenizer(lines, path)
    return load_tokenizer(path)


def train(work: Path) -> None:
    """Run all steps that the checkpoint in `work` lacks."""
    work.mkdir(parents=True, exist_ok=True)
    config = TinyConfig()
    tokenizer = prepare_tokenizer(work)
    texts = encode_texts(tokenizer, [text for _, text in documents(held_out=False)])
    state = load_checkpoint(work) or init_state(config, SEED)
    started, first_step = time.perf_counter(), int(state.step)
    for step in range(first_step, NUM_STEPS):
        batch = make_batch(tokenizer, texts, key=(SEED, step), rows=ROWS, length=ROW_LENGTH)
        state, report = train_step(state, config, batch, jnp.float32(rate_scale(step)))
        done = step + 1
        if done % LOG_EVERY == 0 or done == NUM_STEPS:
            seconds = (time.perf_counter() - started) / (done - first_step)
            losses = {name: round(float(value), 4) for name, value in report.items()}
            _log(work, {"step": done, **losses, "seconds_per_step": round(seconds, 3)})
        if done % SAVE_EVERY == 0 or done == NUM_STEPS:
            save_checkpoint(work, state)
        if done % EVALUATE_EVERY == 0:
            _log(work, {"step": done, **evaluate(state.params, config, tokenizer, num_cases=64)})


def _log(work: Path, entry: dict[str, object]) -> None:
    line = json.dumps(entry)
    print(line, flush=True)
    with (work / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def main() -> None:
    """Train in a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/rtp-tiny"))
    train(parser.parse_args().work)


if __name__ == "__main__":
    main()
