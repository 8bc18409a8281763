"""A skeleton read from its description: the same, and without modules until it is traced."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from rtp_jax.layers.target import Target
from rtp_jax.models import structure
from rtp_jax.models.registry import read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.models.structure import describe, described_skeleton
from rtp_jax.quant.schemes import SCHEMES
from tests.tiny_model import LLAMA

CONFIG = {
    **LLAMA,
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 16,
    "tie_word_embeddings": True,
}
SPEC = read_spec(CONFIG)
TARGETS = {
    "plain": Target("cpu", jnp.dtype("bfloat16")),
    "int8": Target("cpu", jnp.dtype("float32"), scheme=SCHEMES["int8"]),
    "gpu": Target("cuda", jnp.dtype("bfloat16"), head_scheme=SCHEMES["int8_dynamic"]),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_description_says_all_that_loading_needs(kind):
    built = skeleton(SPEC, TARGETS[kind])
    described = describe(built)
    assert described is not None
    read = described_skeleton(described, SPEC, TARGETS[kind])
    assert (read.stored, read.encodings) == (built.stored, built.encodings)
    assert list(read.held.items()) == list(built.held.items())  # leaves are in this order
    assert list(read.axes.items()) == list(built.axes.items())


def test_modules_are_built_when_they_are_needed_and_once(monkeypatch):
    built = skeleton(SPEC, TARGETS["plain"])
    read = described_skeleton(describe(built), SPEC, TARGETS["plain"])
    calls = []

    class Modules:
        @staticmethod
        def skeleton(spec, target):
            calls.append((spec, target))
            return skeleton(spec, target)

    monkeypatch.setattr(structure, "modules", Modules)
    leaves = [jnp.zeros(shape.shape, shape.dtype) for shape in read.held.values()]
    assert not calls
    trees = [jax.tree.structure(one.assemble(leaves)) for one in (built, read, read)]
    assert trees[0] == trees[1] == trees[2]
    assert calls == [(SPEC, TARGETS["plain"])]


def test_what_json_cannot_say_is_not_described():
    built = skeleton(SPEC, TARGETS["int8"])
    path, encoding = next(iter(built.encodings.items()))
    strange = encoding._replace(layout=("two", "parts"))
    changed = dataclasses.replace(built, encodings={**built.encodings, path: strange})
    assert describe(changed) is None
    assert json.loads(describe(built))["encodings"][path]["layout"] == encoding.layout
