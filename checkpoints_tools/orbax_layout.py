"""How do we write an Orbax checkpoint?  Each array as one uncompressed Zarr 2 chunk in a folder.

The tree is flat, a mapping of tensor names to arrays.  This layout is one of those that Orbax
writes itself (`use_ocdbt=False`) and restores to any mesh; unlike its key-value store, whose files
have random names, it is the same bytes at every conversion, and a tensor is a plain file.

Source: the files that orbax-checkpoint 0.12.8 writes, and the Zarr 2 specification.
"""

import json
from collections.abc import Sequence

import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.orbax import METADATA, STORE, ZARR_DTYPES

COMMITTED = "_CHECKPOINT_METADATA"  # a checkpoint is complete when this is there
HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
DICT_KEY = 2  # key_type of a mapping
MAX_FOLDER_NAME = 255
RESERVED = ("d", "array_metadatas", STORE, METADATA, COMMITTED)


def array_description(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Write the `.zarray` of an array that is one chunk."""
    fields = {
        "chunks": list(shape),
        "compressor": None,
        "dimension_separator": ".",
        "dtype": ZARR_DTYPES[dtype],
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(shape),
        "zarr_format": 2,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def tree_description(names: Sequence[str]) -> bytes:
    """Write `_METADATA`: a mapping of names to arrays, in order."""
    tree = {
        str((name,)): {
            "key_metadata": [{"key": name, "key_type": DICT_KEY}],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
        for name in names
    }
    fields = {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    return json.dumps(fields).encode()


def commit_description() -> bytes:
    """Write `_CHECKPOINT_METADATA`; its times are none, so that the bytes are always the same."""
    fields = {
        "item_handlers": HANDLER,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": None,
        "commit_timestamp_nsecs": None,
        "custom_metadata": {},
    }
    return json.dumps(fields).encode()


def check_writable(name: str, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that cannot be a folder of its name, or that Orbax cannot hold."""
    reason = None
    if not name or "/" in name or "\\" in name or name.startswith((".", "_")) or name in RESERVED:
        reason = "its name cannot be that of a folder"
    elif len(name.encode()) > MAX_FOLDER_NAME:
        reason = f"its name is longer than {MAX_FOLDER_NAME} bytes"
    elif 0 in shape:
        reason = f"Orbax holds no empty arrays, and its shape is {list(shape)}"
    if reason:
        raise CheckpointError(
            f"RTPJ-3607 TENSOR_NOT_FOR_ORBAX: tensor {name[:200]!r} cannot be written: {reason}. "
            "Convert --to safetensors."
        )
