"""Which part of an array does each device of a mesh hold, and which bytes of a tensor is that?

Plain data: a box is a range along each axis, and arrays lie row by row, as in a checkpoint.

    [8, 6] over 2 devices     by rows: one range of bytes each     by columns: a range in each row
    ("tensor", None)          000000 000000 ... 111111 111111
    (None, "tensor")                                               000111 000111 000111 ...

Read next: `parts.py`, which cuts tensors into what is read and placed at a time.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

Range = tuple[int, int]  # start, and end without itself
Box = tuple[Range, ...]
Shape = tuple[int, ...]
Split = Sequence[str | tuple[str, ...] | None]  # for each axis of an array: over which mesh axes


def whole(shape: Shape) -> Box:
    """Give the box of all of an array."""
    return tuple((0, size) for size in shape)


def boxes(shape: Shape, split: Split, mesh: Mapping[str, int]) -> list[Box]:
    """Give the box of each device of a mesh, the last mesh axis counting fastest.

    Args:
      shape: of the array; an axis that is split is whole parts of it.
      split: may be shorter than the shape; what it does not name, every device has whole.
      mesh: axes and their sizes, in order.
    """
    named = [_axes(names) for names in split] + [()] * (len(shape) - len(split))
    counts = [math.prod(mesh[name] for name in names) for names in named]
    assert len(named) == len(shape), f"{split} names more axes than {shape} has"
    assert all(n % count == 0 for n, count in zip(shape, counts, strict=True)), (shape, split, mesh)
    found = []
    for coordinates in itertools.product(*map(range, mesh.values())):
        place = dict(zip(mesh, coordinates, strict=True))
        ranges = zip(shape, named, counts, strict=True)
        found.append(tuple(_range(n // count, names, mesh, place) for n, names, count in ranges))
    return found


def _axes(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _range(
    size: int, names: tuple[str, ...], mesh: Mapping[str, int], place: Mapping[str, int]
) -> Range:
    """Give the part of an axis that is split over `names`, of which the first counts slowest."""
    number = 0
    for name in names:
        number = number * mesh[name] + place[name]
    return number * size, (number + 1) * size


def overlap(one: Box, other: Box) -> Box | None:
    """Give what two boxes share, or None; boxes of no axes share their one number."""
    pairs = zip(one, other, strict=True)
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in pairs)
    return shared if all(start < end for start, end in shared) else None


def shape_of(box: Box) -> Shape:
    """Give the shape of a box."""
    return tuple(end - start for start, end in box)


def within(part: Box, box: Box) -> tuple[slice, ...]:
    """Say where a part of a box lies, counted from where the box begins."""
    pairs = zip(part, box, strict=True)
    return tuple(slice(start - first, end - first) for (start, end), (first, _) in pairs)


def byte_ranges(box: Box, shape: Shape, itemsize: int) -> list[Range]:
    """List the bytes of an array that a box holds: ranges in order, none touching the next."""
    if not math.prod(shape_of(box)):
        return []
    whole_axes = 0  # trailing axes of which the box has everything
    for (start, end), size in zip(reversed(box), reversed(shape), strict=True):
        if (start, end) != (0, size):
            break
        whole_axes += 1
    run_axes = min(whole_axes + 1, len(shape))  # these lie in one run, the others are counted out
    outer, inner = box[: len(box) - run_axes], box[len(box) - run_axes :]
    strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    length = math.prod(shape_of(inner)) * itemsize
    first = inner[0][0] * strides[len(outer)] if inner else 0
    found: list[Range] = []
    for index in itertools.product(*(range(start, end) for start, end in outer)):
        start = first + sum(i * stride for i, stride in zip(index, strides, strict=False))
        found.append((start, start + length))
    return found
