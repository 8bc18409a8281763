"""How much host memory will the weights take?  Asked before jax is imported, which takes a while.

Read next: `weights/reserve.py`, which makes that memory ready in a thread.
"""

from pathlib import Path

from rtp_jax.config import EngineConfig, hub_cache
from rtp_jax.models.registry import read_spec
from rtp_jax.quant.schemes import Scheme, schemes_of
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
    if spec.quantization is not None:  # how much it takes is known by who builds its modules
        return Reserve(0)
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if cpu_has_bfloat16() else "float32"
    schemes = schemes_of(config.model.quantization, config.model.head_quantization)
    num_bytes = spec.weight_bytes(ITEMSIZE[dtype], *map(bytes_per_number, schemes))
    return Reserve(num_bytes if num_bytes < MOST * host_memory().available else 0)


def bytes_per_number(scheme: Scheme) -> float | None:
    """Bytes of a stored number and its part of a scale; None: as the model computes."""
    if not scheme.is_quantized:
        return None
    return scheme.bits / 8 + (4 / scheme.group if scheme.group else 0)
