"""The part `engine`: steps of the engine, and the engine from prompts to tokens.

    decode      one token for each of `batch` sequences that have `context` tokens; the floor is
                the bytes of all weights and all KV over copy bandwidth
    prefill     a chunk of a prompt behind earlier tokens; the floor is its flops over matmul rate
    generate    `Engine.generate`, scheduler and sampling included

Weights are random and drawn on the device.  Steps are executed as the engine's loop does: the next
is enqueued before the one before has run.
"""

import functools
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.device import open_device
from bench.gpu.random_model import draw_instead_of_loading, write_model
from bench.gpu.results import Results, Row, Skip
from bench.gpu.timing import Limits, Scale, against_floor, median_s, repeats_for
from bench.gpu.work import Sizes, Work, works
from rtp_jax import Engine, SamplingParams
from rtp_jax.request import Request, Sequence, StepPlan, StepRow

MODELS = ("qwen3-0.6b", "llama-3.1-8b")
GENERATES = ((1, 512, 128), (256, 512, 128))  # requests, prompt, output
PARAMS = SamplingParams(temperature=0.0, ignore_eos=True)


class Loaded:
    """The engine of one model at a time: the next one takes its place."""

    def __init__(self, scale: Scale):
        self._scale, self._name, self._broken, self._engine = scale, "", "", None
        self._folder = tempfile.TemporaryDirectory(prefix="bench-gpu-")
        self._undo = draw_instead_of_loading(scale.device)

    def take(self, name: str) -> tuple[Engine, Sizes]:
        """Return the engine of a model and its sizes; it is built if it is not there."""
        folder = Path(self._folder.name) / name
        if self._broken == name:
            raise Skip(f"the engine of {name} cannot be built, as the row before says")
        if self._name != name:
            self.free()
            self._broken = name  # until it is built
            write_model(folder, name, small=self._scale.dry)
            pick = self._scale.pick
            self._engine = Engine(
                str(folder),
                platform=self._scale.platform,
                dtype=pick("bfloat16", "float32"),
                skip_tokenizer_init=True,
                max_model_len=pick(33024, 512),
                max_num_seqs=pick(256, 8),
                max_num_batched_tokens=pick(2048, 64),
                num_pages=pick(None, 128),
                compile_cache=pick(None, ""),
                enable_prefix_caching=False,
                native="off",  # drawn weights are not packed; GPUs have nothing of it
            )
            self._name, self._broken = name, ""
        assert self._engine is not None
        return self._engine, Sizes.of(json.loads((folder / "config.json").read_text()))

    def free(self) -> None:
        """Give the device's memory back."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._name = None, ""

    def close(self) -> None:
        """Free everything, and let engines load again."""
        self.free()
        self._undo()
        self._folder.cleanup()


def plan_of(work: Work, page_size: int) -> StepPlan:
    """Describe a step as the scheduler would; each sequence has pages of its own."""
    per_sequence = -(-(work.before + work.new) // page_size)
    rows = []
    for slot in range(work.batch):
        request = Request(
            id=str(slot), prompt_token_ids=(1,) * (work.before + work.new), params=PARAMS
        )
        first = 1 + slot * per_sequence
        rows.append(
            StepRow(
                sequence=Sequence(request, index=0, seed=slot, slot=slot),
                slot=slot,
                start=work.before,
                count=work.new,
                token_ids=None if work.new == 1 else [1 + i % 100 for i in range(work.new)],
                pages=list(range(first, first + per_sequence)),
                first_new_page=0,
                num_logit_rows=1,
                samples=True,
            )
        )
    return StepPlan(0, tuple(rows))


def step(loaded: Loaded, name: str, work: Work, scale: Scale, limits: Limits) -> Mapping[str, Any]:
    """Time one kind of step, enqueued again and again."""
    engine, model = loaded.take(name)
    runner = engine._parts.runner
    shapes, length = runner.shapes, work.before + work.new
    needed = work.batch * -(-length // shapes.page_size)
    if needed >= shapes.num_pages or length >= shapes.max_model_len:
        raise Skip(f"{needed} pages and {length} tokens; there are {shapes.num_pages}")
    batch = runner.prepare(plan_of(work, shapes.page_size))
    sizes = {"num_bytes": work.num_bytes(model, scale.pick(2, 4)), "flops": work.flops(model)}
    repeats = min(repeats_for(limits.floor(**sizes)[0], dry=scale.dry), 50)

    def steps() -> object:
        for _ in range(repeats):
            flight = runner.execute(batch)
        return flight.to_host().token_ids

    found = against_floor(median_s(steps, repeats=repeats), limits, **sizes)
    tokens = work.batch * work.new / (found["milliseconds"] / 1e3)
    return {**found, "tokens_per_s": tokens, "note": f"{tokens:.0f} tok/s in bucket {batch.bucket}"}


def generate(
    loaded: Loaded, name: str, sizes: tuple[int, int, int], scale: Scale
) -> Mapping[str, Any]:
    """Time whole requests: the second of two runs, so that everything is warm."""
    engine, _ = loaded.take(name)
    requests, prompt, output = sizes
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output)
    rng = np.random.default_rng(0)
    for _ in range(2):
        prompts = rng.integers(1, 500, (requests, prompt)).tolist()
        began = time.perf_counter()
        answers = engine.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
    made = sum(len(answer.outputs[0].token_ids) for answer in answers)
    assert made == requests * output, f"{made} tokens instead of {requests * output}"
    rate = made / seconds
    return {"milliseconds": seconds * 1e3, "tokens_per_s": rate, "note": f"{rate:.0f} tok/s out"}


def rows(loaded: Loaded, name: str, scale: Scale, limits: Limits) -> list[Row]:
    """List the rows of one model."""
    found = [
        Row(f"{name}/{what}", functools.partial(step, loaded, name, work, scale, limits))
        for what, work in works(dry=scale.dry).items()
    ]
    for sizes in scale.pick(GENERATES, ((4, 16, 8),)):
        what = "generate {} x ({} in, {} out)".format(*sizes)
        found.append(Row(f"{name}/{what}", functools.partial(generate, loaded, name, sizes, scale)))
    return found


def run(results: Results, *, dry: bool, only: str) -> None:
    """Measure model after model."""
    scale, limits = open_device(results, dry=dry)
    loaded = Loaded(scale)
    try:
        for name in MODELS:
            found = rows(loaded, name, scale, limits)
            results.run([row for row in found if only in row.name])
    finally:
        loaded.close()
