"""Which devices run the model, and which numbers suit them: what `None` and `auto` become."""

import contextlib
from dataclasses import dataclass

import jax

from rtp_jax.config import compiler_flags
from rtp_jax.errors import FailedPrecondition
from rtp_jax.parallel.axes import MeshShape
from rtp_jax.parallel.devices import Device, DeviceMesh, Devices, LoneDevice
from rtp_jax.runner.processor import cpu_has_bfloat16

PLATFORM_OF = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}  # jax says gpu, programs say cuda
VIRTUAL = "jax_num_cpu_devices", "xla_force_host_platform_device_count"  # what makes CPU devices


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the host needs to know of the devices, which are alike."""

    devices: Devices
    platform: str  # cpu or cuda
    free_bytes: int | None  # of each; None: the host's memory is that of all devices

    @property
    def device(self) -> Device:
        """The first device."""
        return self.devices.every[0]

    @property
    def is_hopper(self) -> bool:
        """Whether it runs code for sm_90a, which our GPU kernels are."""
        return self.platform == "cuda" and str(self.device.compute_capability).startswith("9.")

    @property
    def best_dtype(self) -> str:
        """The dtype that computes fastest without surprises."""
        return "bfloat16" if self.platform == "cuda" or cpu_has_bfloat16() else "float32"


def find_devices(platform: str | None, shape: MeshShape = MeshShape()) -> DeviceFacts:
    """Take the first devices of a platform, or of whatever jax has."""
    if shape.size > 1 and platform != "cuda":
        _make_cpu_devices(shape.size)
    try:
        devices = jax.devices({"cuda": "gpu", "cpu": "cpu", None: None}[platform])
    except RuntimeError as error:
        raise FailedPrecondition(
            f"RTPJ-4107 NO_DEVICE: platform={platform!r} was asked for and jax has only"
            f" {jax.default_backend()}. Install the extra rtp_jax[cuda13] (or cuda12), or leave"
            " platform out.",
            field="platform",
        ) from error
    found = devices[0].platform
    if found not in PLATFORM_OF:
        raise FailedPrecondition(
            f"RTPJ-4107 NO_DEVICE: jax offers {found}, and this engine runs on cpu and"
            " cuda. Set platform=cpu, or JAX_PLATFORMS=cpu.",
            field="platform",
        )
    platform = PLATFORM_OF[found]
    devices = [device for device in devices if device.process_index == jax.process_index()]
    _check_enough(devices, shape.size, platform)
    devices = devices[: shape.size]
    free = [_free_bytes(device, platform) for device in devices]
    return DeviceFacts(
        LoneDevice(devices[0]) if shape.size == 1 else DeviceMesh(devices, shape),
        platform,
        None if None in free else min(size for size in free if size is not None),
    )


def _make_cpu_devices(count: int) -> None:
    """Have jax divide the CPU, if it has not begun and nobody has said into how many devices."""
    option, flag = VIRTUAL
    if getattr(jax.config, option) < 1 and flag not in compiler_flags():
        with contextlib.suppress(RuntimeError):  # jax has begun, with as many as it has
            jax.config.update(option, count)


def _check_enough(devices: list[Device], wanted: int, platform: str) -> None:
    if len(devices) >= wanted:
        return
    more = "use a machine with more GPUs"
    if platform == "cpu":
        more = (
            f"set {VIRTUAL[0].upper()}={wanted} in the environment: jax divides a CPU only before"
            " its first use"
        )
    raise FailedPrecondition(
        f"RTPJ-4111 TOO_FEW_DEVICES: tensor_parallel_size={wanted} was asked for, and this process"
        f" has {len(devices)} of {platform}. Lower tensor_parallel_size to <= {len(devices)}, or"
        f" {more}.",
        field="tensor_parallel_size",
    )


def _free_bytes(device: Device, platform: str) -> int | None:
    if platform == "cpu":
        return None
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats.get("bytes_in_use", 0)
