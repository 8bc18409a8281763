"""Which device runs the model, and which numbers suit it: what `None` and `auto` become."""

from dataclasses import dataclass
from typing import Any

import jax

from rtp_jax.errors import FailedPrecondition
from rtp_jax.runner.processor import cpu_has_bfloat16

Device = Any  # a jax.Device, which type checkers do not accept as a type
PLATFORM_OF = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}  # jax says gpu, programs say cuda


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the host needs to know of the device."""

    device: Device
    platform: str  # cpu or cuda
    free_bytes: int | None  # None: the host's memory is the device's

    @property
    def is_hopper(self) -> bool:
        """Whether it runs code for sm_90a, which our GPU kernels are."""
        return self.platform == "cuda" and str(self.device.compute_capability).startswith("9.")

    @property
    def best_dtype(self) -> str:
        """The dtype that computes fastest without surprises."""
        return "bfloat16" if self.platform == "cuda" or cpu_has_bfloat16() else "float32"


def find_device(platform: str | None) -> DeviceFacts:
    """Take the first device of a platform, or of whatever jax has."""
    try:
        devices = jax.devices({"cuda": "gpu", "cpu": "cpu", None: None}[platform])
    except RuntimeError as error:
        raise FailedPrecondition(
            f"RTPJ-4107 NO_DEVICE: platform={platform!r} was asked for and jax has only"
            f" {jax.default_backend()}. Install the extra rtp_jax[cuda13] (or cuda12), or leave"
            " platform out.",
            field="platform",
        ) from error
    device = devices[0]
    if device.platform not in PLATFORM_OF:
        raise FailedPrecondition(
            f"RTPJ-4107 NO_DEVICE: jax offers {device.platform}, and this engine runs on cpu and"
            " cuda. Set platform=cpu, or JAX_PLATFORMS=cpu.",
            field="platform",
        )
    platform = PLATFORM_OF[device.platform]
    return DeviceFacts(device, platform, _free_bytes(device, platform))


def _free_bytes(device: Device, platform: str) -> int | None:
    if platform == "cpu":
        return None
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats.get("bytes_in_use", 0)
