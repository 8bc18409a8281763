"""How much memory is made ready for the weights, and for whom none is."""

import json
import subprocess
import sys

import pytest

from rtp_jax.config import EngineConfig
from rtp_jax.engine import weights_memory as module
from rtp_jax.engine.weights_memory import weights_memory
from rtp_jax.errors import CheckpointError, NotFound
from rtp_jax.runner.host_memory import HostMemory
from tests.tiny_model import LLAMA

CONFIG = {**LLAMA, "tie_word_embeddings": True}
MATRICES = 3 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 96)
NUMBERS = MATRICES + 100 * 64 + 64 + 3 * 2 * 64  # embedding, last norm, norms of layers
ROWS = 3 * (64 + 2 * 32 + 64 + 2 * 96 + 64) + 100
HELD = NUMBERS + 12 * 64  # packed in float32 or bfloat16: a head of 112 rows


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Write a model of no tensors on a host without a GPU, and have sizes returned."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(module, "Reserve", lambda num_bytes: num_bytes)
    monkeypatch.setattr(module, "NVIDIA_DRIVER", tmp_path / "no-such-driver")
    return tmp_path


def asked(model, **options) -> int:
    return weights_memory(str(model), EngineConfig.from_options(**options))


@pytest.mark.parametrize(
    ("options", "num_bytes"),
    [
        ({"dtype": "float32"}, 4 * HELD),
        ({"dtype": "bfloat16"}, 2 * HELD),
        # A scale for each row; packed, blocks of 16 rows and a sum beside each scale.
        (
            {"dtype": "float32", "quantization": "int8", "native": "off"},
            4 * NUMBERS - 3 * (MATRICES + 6400) + 4 * ROWS,
        ),
        (
            {"dtype": "float32", "quantization": "int8"},
            4 * NUMBERS - 3 * (MATRICES + 6400) + 8 * (ROWS + 12) + 12 * 64 + 3 * 64 * 32,
        ),
        ({"dtype": "float32", "platform": "cpu"}, 4 * HELD),
        ({"dtype": "float32", "platform": "cuda"}, 0),
    ],
)
def test_as_many_bytes_as_the_weights_will_take(model, options, num_bytes):
    assert asked(model, **options) == num_bytes


@pytest.mark.parametrize(("has_bfloat16", "size"), [(True, 2), (False, 4)])
def test_auto_is_what_the_processor_computes_fastest(model, monkeypatch, has_bfloat16, size):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: has_bfloat16)
    assert asked(model) == size * HELD


def test_where_there_is_a_gpu_it_may_be_used(model, monkeypatch):
    monkeypatch.setattr(module, "NVIDIA_DRIVER", model)
    assert asked(model, dtype="float32") == 0
    assert asked(model, dtype="float32", platform="cpu") == 4 * HELD


def test_what_may_not_fit_is_left_to_the_memory_plan(model, monkeypatch):
    monkeypatch.setattr(module, "host_memory", lambda: HostMemory(10 * NUMBERS, 6 * NUMBERS))
    assert asked(model, dtype="float32") == 0
    assert asked(model, dtype="bfloat16") == 2 * HELD


def test_a_wrong_model_is_refused_at_once(model):
    with pytest.raises(NotFound, match="RTPJ-3031"):
        asked(model / "elsewhere")
    (model / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["Strange"]}))
    with pytest.raises(CheckpointError, match="RTPJ-3205"):
        asked(model)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("rtp_jax.engine.engine", ("jax", "flax", "jinja2")), ("rtp_jax.engine.build", ("flax",))],
)
def test_a_start_reads_heavy_libraries_late_or_not_at_all(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
