"""What must work on the oldest Python too: everything imports, and the engine answers.

`make test` runs the tests marked `smoke` a second time there, when a newer Python ran the rest.
"""

import importlib
import pkgutil

import pytest

import checkpoints_tools
import rtp_jax
from rtp_jax.kernels.compat import HAS_MOSAIC_GPU

pytestmark = pytest.mark.smoke
MODULES = [
    found.name
    for package in (rtp_jax, checkpoints_tools)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
FOR_MOSAIC_GPU = {  # read late, by GPU kernels that have an obstacle elsewhere
    "rtp_jax.kernels.paged_attention.mosaic_gpu_walk",
    "rtp_jax.kernels.quantized_matmul.mosaic_stream",
    "rtp_jax.kernels.quantized_matmul.mosaic_sums",
}


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_it_imports(name):
    if name in FOR_MOSAIC_GPU and not HAS_MOSAIC_GPU:
        pytest.skip("this jax has no Mosaic GPU that the kernels are written for")
    importlib.import_module(name)


def test_the_engine_answers(tiny_model):
    params = rtp_jax.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with rtp_jax.Engine(str(tiny_model), dtype="float32", max_model_len=64) as engine:
        first, second = engine.generate(["The page pool", [5, 6, 7]], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in (first, second)] == [4, 4]
    assert first.outputs[0].finish_reason == "length"
