"""Fingerprints: equal for the same model, different for any other, also a fine-tuned one."""

import shutil

import numpy as np
import pytest

from rtp_jax.weights.fingerprint import fingerprint
from tests.weights.written import save, tensors


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    save(folder, tensors())
    return folder


def test_a_copy_has_the_same_fingerprint(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    assert fingerprint(model) == fingerprint(tmp_path / "copy")
    assert len(fingerprint(model)) == 32


def test_another_config_or_other_tensors_have_another(model):
    found = {fingerprint(model)}
    (model / "config.json").write_text('{"a": 2}')
    found.add(fingerprint(model))
    save(model, tensors(np.float16))
    found.add(fingerprint(model))
    save(model, tensors(np.float16, seed=1))  # the same header, as after fine-tuning
    found.add(fingerprint(model))
    assert len(found) == 4


def test_one_changed_tensor_is_noticed(model):
    before, source = fingerprint(model), tensors()
    source["model.layers.3.mlp.weight"] += 1
    save(model, source)
    assert fingerprint(model) != before
