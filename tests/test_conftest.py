"""The tiny model is the same everywhere, and a recorded run tells the truth about itself."""

import hashlib
import json

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from tests.tiny_model import CONFIG, TOKENIZER_SIZE, write_tiny_model

pytest_plugins = "pytester"


def test_the_tiny_model_is_the_same_every_time(tiny_model, tmp_path):
    again = write_tiny_model(tmp_path / "again")
    names = sorted(file.name for file in tiny_model.iterdir())
    assert names == sorted(file.name for file in again.iterdir())
    for name in names:
        first, second = (hashlib.sha256((f / name).read_bytes()) for f in (tiny_model, again))
        assert first.hexdigest() == second.hexdigest(), name


@pytest.mark.smoke
def test_the_tiny_model_is_complete(tiny_model):
    tensors = load_file(tiny_model / "model.safetensors")
    assert len(tensors) == 3 + 11 * CONFIG["num_hidden_layers"]
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TOKENIZER_SIZE < CONFIG["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("Größe 漢字\n").ids) == "Größe 漢字\n"
    assert tokenizer.token_to_id("<|im_end|>") == CONFIG["eos_token_id"]


RUN = """
import pytest

@pytest.mark.capability("one")
def test_good():
    pass

@pytest.mark.capability("two")
@pytest.mark.parametrize("x", [1, 2])
def test_half(x):
    assert x == 1

def test_skipped():
    pytest.skip("no such device")

@pytest.fixture
def broken():
    raise ValueError

def test_never_called(broken):
    pass
"""


def test_a_recorded_run_says_what_happened(pytester):
    pytester.makeconftest("from tests.conftest import pytest_addoption, pytest_configure")
    pytester.makeini("[pytest]\nmarkers = capability(name): shown")
    pytester.makepyfile(test_it=RUN)
    pytester.runpytest_inprocess("--results=out/run.json", "-pno:cacheprovider")
    record = json.loads((pytester.path / "out" / "run.json").read_text())
    assert record["counts"] == {"passed": 2, "failed": 2, "skipped": 1}
    assert record["exit_status"] == 1
    assert record["failed"] == ["test_it.py::test_half[2]", "test_it.py::test_never_called"]
    shown = {(row["name"], row["outcome"]) for row in record["capabilities"]}
    assert shown == {("one", "passed"), ("two", "passed"), ("two", "failed")}
    assert record["versions"].keys() >= {"python", "jax", "grpcio"}
    assert record["machine"]["cores"] >= 1
