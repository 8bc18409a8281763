"""What quantizing costs the built-in model: its loss on text that it never saw, by scheme."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.calibration import LENGTH, RTP_TINY, write_text
from bench.calibration import loss as engine_loss
from checkpoints_tools.calibration.command import layers_of
from checkpoints_tools.calibration.steps import steps_of
from checkpoints_tools.compressed import decoded_tensors
from checkpoints_tools.quantize import CALIBRATED, Chosen
from checkpoints_tools.source import open_source
from rtp_jax.models.registry import read_spec
from rtp_jax.text.tokenizer import load_tokenizer
from tests.checkpoints_tools.written import read, run, save
from tools.rtp_tiny.corpus import held_out_sample

MAX_COST = 0.03


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Text of the kind that the built-in model has learned, none of it held out."""
    return write_text(tmp_path_factory.mktemp("texts") / "calibration.jsonl")


def quantized(scheme: str, out: Path, text: Path, tokens: int) -> Path:
    more = ["--calibration", text, "--calibration-tokens", tokens] if scheme in CALIBRATED else []
    assert run("quantize", "rtp-tiny", out, "--scheme", scheme, *more) == 0
    return out


def plain_numbers(folder: Path) -> dict[str, np.ndarray]:
    """Read a checkpoint, its quantized matrices as the numbers that they stand for."""
    decoded = decoded_tensors(open_source(str(folder)))
    parts = {part for each in decoded.values() for part in each.parts}
    tensors = {name: array for name, array in read(folder).items() if name not in parts}
    tensors |= {name: np.concatenate([*each.blocks()]) for name, each in decoded.items()}
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def loss(folder: Path, texts: list[list[int]], scratch: Path) -> float:
    """Compute the loss, in nats a token, of the numbers in a checkpoint, in float32."""
    tensors = plain_numbers(folder)
    source = open_source(str(save(scratch, tensors)))
    spec = read_spec(json.loads((RTP_TINY / "config.json").read_text()))
    steps = steps_of(texts, 512)
    layers = layers_of("gptq", source, spec, Chosen(CALIBRATED["gptq"], [], []), steps)
    states = layers.embedded()
    for file in layers.files:
        layers.advance(layers.read(file), states, solve=True)  # nothing is wanted
    losses = []
    for step, x in zip(steps, states, strict=True):
        scale = np.sqrt(np.square(x).mean(-1, keepdims=True) + spec.norm_eps)
        logits = x / scale * tensors["model.norm.weight"] @ tensors["model.embed_tokens.weight"].T
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        follows = np.flatnonzero(np.asarray(step.inputs.positions)[0, : step.num_tokens])
        losses += (-logits[follows - 1, step.ids[follows]]).tolist()
    return float(np.mean(losses))


def test_gptq_costs_less_than_rounding(text, tmp_path):
    tokenizer = load_tokenizer(RTP_TINY)
    texts = [tokenizer.encode(one)[:LENGTH] for one in held_out_sample()[::4]]
    folders = [RTP_TINY, *(quantized(n, tmp_path / n, text, 4096) for n in ("int4", "gptq"))]
    plain, rounded, calibrated = (
        loss(folder, texts, tmp_path / f"numbers{place}") for place, folder in enumerate(folders)
    )
    assert calibrated - plain < 0.6 * (rounded - plain)
    assert plain < calibrated < plain * (1 + MAX_COST)


@pytest.mark.full
@pytest.mark.capability("calibration")
@pytest.mark.parametrize("scheme", CALIBRATED)
def test_the_engine_loses_less_than_by_rounding(scheme, text, tmp_path, program_cache):
    folders = [quantized(each, tmp_path / each, text, 32768) for each in ("int4", scheme)]
    plain, rounded, calibrated = (
        engine_loss(folder, str(program_cache)) for folder in (RTP_TINY, *folders)
    )
    assert calibrated - plain < 0.9 * (rounded - plain)
    assert calibrated < plain * (1 + MAX_COST)
