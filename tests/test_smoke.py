"""What must work on the oldest Python too: everything imports, and the engine answers.

`make test` runs the tests marked `smoke` a second time there, when a newer Python ran the rest.
"""

import importlib
import pkgutil

import pytest

import rtp_jax

pytestmark = pytest.mark.smoke
MODULES = [found.name for found in pkgutil.walk_packages(rtp_jax.__path__, "rtp_jax.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_it_imports(name):
    importlib.import_module(name)


def test_the_engine_answers(tiny_model):
    params = rtp_jax.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with rtp_jax.Engine(str(tiny_model), dtype="float32", max_model_len=64) as engine:
        first, second = engine.generate(["The page pool", [5, 6, 7]], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in (first, second)] == [4, 4]
    assert first.outputs[0].finish_reason == "length"
