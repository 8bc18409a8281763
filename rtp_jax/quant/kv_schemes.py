"""KV schemes: how keys and values are kept in pages, and which layers keep them how.

Pages hold numbers of the scheme's dtype; where there are scales, each head of a token has one:

    number = stored * scale        scale = largest magnitude of the head / 127 (int8), 448 (fp8)

Layers of one scheme are one KV group, whatever lies between them.  No jax here: the memory plan and
the command line use it without a device.  Read next: `kernels/pages.py`.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rtp_jax.errors import InvalidArgument

RULE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?:(\w+)", re.ASCII)


class KVScheme(NamedTuple):
    """An encoding of keys and values."""

    name: str
    dtype: str  # of a stored number, by NumPy's or ml_dtypes' name
    itemsize: int  # bytes of a stored number
    scale_bytes: int = 0  # of each head of a token; 0: no scales

    def bytes_per_head(self, head_dim: int) -> int:
        """Bytes of one key, or of one value, of one token."""
        return head_dim * self.itemsize + self.scale_bytes


KV_SCHEMES = {
    "float32": KVScheme("float32", "float32", 4),
    "bfloat16": KVScheme("bfloat16", "bfloat16", 2),
    "int8": KVScheme("int8", "int8", 1, 4),
    "fp8": KVScheme("fp8", "float8_e4m3fn", 1, 4),
}


class KVLayers(NamedTuple):
    """The scheme of every layer."""

    schemes: tuple[KVScheme, ...]

    @property
    def groups(self) -> tuple[KVScheme, ...]:
        """The scheme of each KV group, in the order in which layers first have them."""
        return tuple(dict.fromkeys(self.schemes))

    @property
    def group_of(self) -> tuple[int, ...]:
        """The KV group of each layer."""
        return tuple(map(self.groups.index, self.schemes))

    def layers_in(self, group: int) -> int:
        """Count the layers of a KV group."""
        return self.group_of.count(group)

    def bytes_per_token(self, num_kv_heads: int, head_dim: int) -> int:
        """Bytes of one token in the pages of all layers, scales included."""
        return sum(2 * num_kv_heads * scheme.bytes_per_head(head_dim) for scheme in self.schemes)

    def describe(self) -> str:
        """Name the one scheme, or list those of all layers; equal layers make equal words."""
        if len(self.groups) == 1:
            return self.schemes[0].name
        parts, first = [], 0
        for scheme, run in itertools.groupby(self.schemes):
            last = first + len(list(run)) - 1
            layers = f"{first}" if first == last else f"{first}-{last}"
            parts.append(f"{layers}:{scheme.name}")
            first = last + 1
        return ",".join(parts)


def kv_layers(num_layers: int, scheme: str, exceptions: str | None = None) -> KVLayers:
    """Give every layer a scheme.

    Args:
      num_layers: of the model.
      scheme: a name in `KV_SCHEMES`, for layers without an exception.
      exceptions: such as `0-1:bfloat16,27:fp8`, as `describe` writes them.

    Raises:
      InvalidArgument: RTPJ-1102, the exceptions cannot be read, or name layers that are not there.
    """
    schemes: list[KVScheme | None] = [None] * num_layers
    for part, layers, name in _rules(exceptions or ""):
        if name not in KV_SCHEMES:
            raise _invalid(part, f"{name} is none of {', '.join(KV_SCHEMES)}")
        if not layers or layers[-1] >= num_layers:
            raise _invalid(part, f"the model has layers 0-{num_layers - 1}")
        for layer in layers:
            if schemes[layer] is not None:
                raise _invalid(part, f"layer {layer} is named twice")
            schemes[layer] = KV_SCHEMES[name]
    return KVLayers(tuple(one or KV_SCHEMES[scheme] for one in schemes))


def _rules(exceptions: str) -> Iterator[tuple[str, Sequence[int], str]]:
    for part in filter(None, exceptions.replace(" ", "").split(",")):
        match = RULE.fullmatch(part)
        if match is None:
            raise _invalid(part, "it does not read like 0-3:bfloat16 or 27:fp8")
        first, last = int(match[1]), int(match[2] or match[1])
        yield part, range(first, last + 1), match[3]


def _invalid(part: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-1102 KV_LAYERS_INVALID: kv_layers has {part!r}, and {reason}. Write LAYER:KV_DTYPE"
        " or FIRST-LAST:KV_DTYPE, separated by commas, each layer once.",
        field="kv_layers",
    )
