"""How a step's metadata travels to the device: one int32 vector, one transfer.

Both sides share one layout: the host fills named fields with NumPy, the compiled step slices the
same fields out again.  Floats and unsigned numbers travel as their bits.  Read next: `batch.py`.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Int32, Num

from rtp_jax.runner.buckets import Bucket


@dataclass(frozen=True, slots=True)
class Field:
    """Where one array lies in the vector."""

    offset: int
    shape: tuple[int, ...]
    dtype: str  # int32, float32 or uint32

    @property
    def size(self) -> int:
        """Elements of the array."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a bucket's vector."""

    fields: Mapping[str, Field]
    size: int

    def new(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Make a zeroed vector and writable views of its fields.

        Each step gets its own: on a CPU the device reads host memory in place.
        """
        vector = np.zeros(self.size, np.int32)
        views = {
            name: vector[field.offset : field.offset + field.size]
            .view(field.dtype)
            .reshape(field.shape)
            for name, field in self.fields.items()
        }
        return vector, views

    def unpack(self, vector: Int32[Array, " size"]) -> dict[str, Num[Array, "..."]]:
        """Slice the fields out of the vector, inside a compiled step."""
        return {
            name: jax.lax.bitcast_convert_type(
                vector[field.offset : field.offset + field.size].reshape(field.shape), field.dtype
            )
            for name, field in self.fields.items()
        }


@functools.cache
def layout(bucket: Bucket, table_width: int) -> Layout:
    """Lay out the metadata of a step: token fields, sequence fields, logit-row fields."""
    tokens, rows = (bucket.tokens,), (bucket.sequences,)
    shapes = {
        "num_tokens": ((1,), "int32"),
        "token_ids": (tokens, "int32"),  # -1: the device has it, in `history`
        "positions": (tokens, "int32"),
        "sequence_of": (tokens, "int32"),
        "token_slots": (tokens, "int32"),  # row of `history`; the null slot for padding
        "query_start": (rows, "int32"),
        "query_count": (rows, "int32"),
        "page_table": ((bucket.sequences, table_width), "int32"),
        "num_logit_rows": ((1,), "int32"),
        "logit_rows": (rows, "int32"),  # which token each logit row unembeds
        "row_slots": (rows, "int32"),
        "row_positions": (rows, "int32"),  # position of the token that the row yields
        "commit_slots": (rows, "int32"),  # row_slots where the row samples, else the null slot
        "targets": (rows, "int32"),
        "num_logprobs": (rows, "int32"),
        "prompt_lengths": (rows, "int32"),
        "top_ks": (rows, "int32"),
        "seeds": (rows, "uint32"),
        **dict.fromkeys(FLOAT_OPTIONS, (rows, "float32")),
    }
    fields, offset = {}, 0
    for name, (shape, dtype) in shapes.items():
        fields[name] = Field(offset, shape, dtype)
        offset += math.prod(shape)
    return Layout(fields, offset)


FLOAT_OPTIONS = ("temperatures", "top_ps", "min_ps", "presence", "frequency", "repetition")
