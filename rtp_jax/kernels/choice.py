"""Which implementation of an operation runs: decided while tracing, and never silently.

Every kernel file has an `obstacle` that says in words why it cannot serve.  Here those words become
a choice, or an error that repeats them.
"""

from collections.abc import Mapping

from rtp_jax.errors import KernelError

REFERENCE = "reference"


def choose(operation: str, obstacles: Mapping[str, str | None], implementation: str) -> str:
    """Name the implementation that runs: the one asked for, or the first without an obstacle.

    Args:
      operation: what is being computed, for messages.
      obstacles: for each kernel, best first, why it cannot serve here; None if it can.
      implementation: "auto", "reference" or the name of a kernel.

    Raises:
      KernelError: RTPJ-6001 for an unknown name, RTPJ-6002 for a kernel that cannot serve.
    """
    if implementation == REFERENCE:
        return REFERENCE
    if implementation == "auto":
        return next((name for name, reason in obstacles.items() if reason is None), REFERENCE)
    if implementation not in obstacles:
        names = ", ".join(["auto", *obstacles, REFERENCE])
        raise KernelError(
            f"RTPJ-6001 KERNEL_UNKNOWN: {operation} has no implementation {implementation!r}. "
            f"Choose one of: {names}."
        )
    if reason := obstacles[implementation]:
        fits = [name for name, obstacle in obstacles.items() if obstacle is None] + [REFERENCE]
        raise KernelError(
            f"RTPJ-6002 KERNEL_OBSTACLE: {operation} cannot run as {implementation!r}: {reason}. "
            f"These can: auto, {', '.join(fits)}."
        )
    return implementation
