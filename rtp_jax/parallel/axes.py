"""What does a dimension of a parameter mean, and over which mesh axes is it spread?

One table: logical axis to mesh axes, () for what every device holds whole.  A mesh has the axis
`tensor`, over which heads and widths are divided, and the axis `copy`: devices that hold the same
KV heads, where there are more devices than those.

    8 query heads, 2 KV heads,      tensor 0                tensor 1
    on 4 devices                    copy 0      copy 1      copy 0      copy 1
                     query heads    0 1         2 3         4 5         6 7
                     KV heads       0           0           1           1

No jax here: the memory plan divides models as well.  Read next: `devices.py`.
"""

from typing import NamedTuple

TENSOR, COPY, STAGE = "tensor", "copy", "stage"
EVERY = (TENSOR, COPY)
MESH_AXES: dict[str, tuple[str, ...]] = {
    "layers": (STAGE,),  # no mesh has it yet
    "vocab": EVERY,
    "embed": (),
    "heads": EVERY,  # all heads end to end: the rows of a projection to queries
    "kv_heads": (TENSOR,),
    "head_dim": (),
    "mlp": EVERY,
    "groups": (),  # scales of a row
    "bytes": (),  # of a block of rows, packed for a kernel
}


class MeshShape(NamedTuple):
    """How many devices there are along each mesh axis."""

    tensor: int = 1
    copies: int = 1

    @property
    def size(self) -> int:
        """How many devices there are."""
        return self.tensor * self.copies

    def parts(self, axis: str) -> int:
        """Into how many parts a logical axis is divided."""
        assert axis in MESH_AXES, f"{axis}: not in parallel/axes.py"
        names = MESH_AXES[axis]
        return (self.tensor if TENSOR in names else 1) * (self.copies if COPY in names else 1)

    def dividing(self, axis: str) -> tuple[str, ...]:
        """Name the mesh axes over which a logical axis is divided; (): every device has it all."""
        return MESH_AXES[axis] if self.parts(axis) > 1 else ()

    def share(self, axis: str, size: int) -> int:
        """Give the part of a logical axis that one device has."""
        parts = self.parts(axis)
        assert size % parts == 0, f"{axis}: {size} does not divide into {parts} parts"
        return size // parts


def mesh_shape(num_devices: int, num_kv_heads: int) -> MeshShape | None:
    """Arrange devices so that each has the KV heads of its query heads, or None if that cannot be.

    Either each device has several KV heads of its own, or one that other devices have as well.
    """
    if num_kv_heads % num_devices == 0:
        return MeshShape(num_devices, 1)
    if num_devices % num_kv_heads == 0:
        return MeshShape(num_kv_heads, num_devices // num_kv_heads)
    return None
