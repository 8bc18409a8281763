"""How much host memory will the weights take?  Asked before jax is imported, which takes a while.

Read next: `weights/reserve.py`, which makes that memory ready in a thread.
"""

from pathlib import Path

from rtp_jax.config import EngineConfig, RunnerConfig, hub_cache
from rtp_jax.models.registry import read_spec
from rtp_jax.models.spec import ModelSpec
from rtp_jax.quant.held_bytes import held_bytes
from rtp_jax.quant.schemes import Scheme, fitting, schemes_of
from rtp_jax.runner.host_memory import host_memory
from rtp_jax.runner.processor import cpu_has_bfloat16
from rtp_jax.weights.files import read_json
from rtp_jax.weights.locate import find_model
from rtp_jax.weights.reserve import Reserve

ITEMSIZE = {"float32": 4, "bfloat16": 2}
NVIDIA_DRIVER = Path("/proc/driver/nvidia")
MOST = 0.5  # of the available memory; the memory plan, which comes later, refuses what cannot fit


def weights_memory(model: str, config: EngineConfig) -> Reserve:
    """Begin to make memory ready for the weights of a model, if they will be on this host.

    Raises:
      RtpError: there is no such model, or no architecture for it.
    """
    spec = read_spec(read_json(find_model(model, hub_cache=hub_cache()) / "config.json"))
    platform = config.runner.platform
    if platform == "cuda" or (platform is None and NVIDIA_DRIVER.exists()):
        return Reserve(0)
    if config.runner.tensor_parallel_size > 1:  # so many devices take another number of bytes
        return Reserve(0)
    if spec.quantization is not None:  # how much it takes is known by who builds its modules
        return Reserve(0)
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if cpu_has_bfloat16() else "float32"
    schemes = schemes_of(config.model.quantization, config.model.head_quantization)
    itemsize, packed = ITEMSIZE[dtype], packs(config.runner, "cpu")
    num_bytes = spec.weight_bytes(itemsize, *chosen_bytes(spec, schemes, itemsize, packed=packed))
    return Reserve(num_bytes if num_bytes < MOST * host_memory().available else 0)


def packs(runner: RunnerConfig, platform: str) -> bool:
    """Whether the native kernels are to multiply, if there are any."""
    return platform == "cpu" and runner.native != "off" and runner.matmul in ("auto", "native_cpu")


def chosen_bytes(
    spec: ModelSpec, schemes: tuple[Scheme, Scheme], itemsize: int, *, packed: bool
) -> tuple[int, int]:
    """Count the bytes of the matrices of all layers, and of the head, in chosen schemes.

    Args:
      spec: the model.
      schemes: of its layers, and of its head.
      itemsize: bytes of a number in computation.
      packed: whether the native kernels are to multiply.
    """

    def of(scheme: Scheme, outer: int, inner: int) -> int:
        return held_bytes(fitting(scheme, inner), outer, inner, itemsize, packed=packed)

    layers, head = schemes
    matrices = sum(of(layers, outer, inner) for outer, inner in spec.matrix_shapes.values())
    return spec.num_layers * matrices, of(head, spec.vocab_size, spec.hidden_size)
