"""Merge a LoRA adapter into its base model: W + scale * B A, for each matrix that it adapts.

The adapter is a folder as PEFT writes it: `adapter_config.json` and `adapter_model.safetensors`,
with `base_model.model.M.lora_A.weight` [rank, in] and `...lora_B.weight` [out, rank] for a module
`M`, and whole tensors `base_model.model.M.weight` where a module was trained as a whole.

Source: Hu et al. 2021, LoRA (arXiv:2106.09685), section 4.1; Kalajdzievski 2023, rsLoRA
(arXiv:2312.03732); PEFT's documentation of its checkpoint format.
"""

import argparse
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_tools import output_options
from checkpoints_tools.compressed import whole
from checkpoints_tools.convert import FLOATS, rounded
from checkpoints_tools.report import Report
from checkpoints_tools.source import Source, in_rows, open_source, safetensors_source
from checkpoints_tools.stored import BLOCK, StoredTensor
from checkpoints_tools.writers import OutputTensor
from rtp_jax.errors import CheckpointError, Unimplemented
from rtp_jax.weights.files import inside, read_json
from rtp_jax.weights.table import some_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
EXPRESSION = set("*+?[](){}|^$\\")  # a pattern with these is no plain name
# Fields of the config that change what an adapter means, and the values that mean what we do.
KNOWN = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian"),  # others change the base as well
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None, []),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter: pairs of matrices by module, whole tensors by name, and the scale of each."""

    source: Source
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]  # A, B
    whole: Mapping[str, StoredTensor]
    config: Mapping[str, Any]

    def scale(self, module: str) -> float:
        """Give the factor on B A: alpha over the rank, or over its root."""
        rank = self._of(module, "r", "rank_pattern")
        alpha = self._of(module, "lora_alpha", "alpha_pattern")
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _of(self, module: str, name: str, pattern: str) -> float:
        """Look a number up: of the first pattern with which a module's name ends, or of all."""
        value = self.config.get(name)
        for key, other in (self.config.get(pattern) or {}).items():
            plain = key.replace("\\.", ".").removeprefix("^").removesuffix("$")
            if set(plain) & EXPRESSION:
                raise _unsupported(self.source.folder / CONFIG, f"{pattern} has {key[:80]!r}")
            if module == plain or (not key.startswith("^") and module.endswith(f".{plain}")):
                value = other
                break
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise _invalid(self.source.folder, f"{name} of {module} is {value!r}")
        return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", metavar="BASE", help="a folder, or the name of a model")
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder that PEFT wrote")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    output_options.add_output_arguments(parser)


def run(parsed: argparse.Namespace, report: Report) -> int:
    """Merge."""
    base = open_source(parsed.source)
    to = output_options.target(parsed, base)
    adapter = read_adapter(Path(parsed.adapter))
    tensors = merged(base, adapter)
    words = f"{len(adapter.pairs)} matrices are adapted, {len(adapter.whole)} tensors replaced"
    report.event("merge", words, adapted=len(adapter.pairs), replaced=len(adapter.whole))
    return output_options.finish(
        parsed,
        report,
        to=to,
        source=base,
        tensors=tensors,
        config=None,
        choices={
            "command": "merge-lora",
            "adapter": adapter.source.identity,
            "adapter_config": dict(adapter.config),
        },
    )


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's config and headers, and refuse what this build cannot merge."""
    config = read_json(inside(folder, CONFIG))
    for name, allowed in KNOWN.items():
        if config.get(name, allowed[0]) not in allowed:
            raise _unsupported(folder / CONFIG, f"{name} is {str(config[name])[:80]}")
    source = safetensors_source(folder, TENSORS)
    sides: dict[str, dict[str, StoredTensor]] = {}
    replaced = {}
    for tensor in source.tensors:
        name = tensor.name.removeprefix(PREFIX)
        if match := LORA.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        elif "lora_" in name or name == tensor.name:
            raise _unsupported(folder / TENSORS, f"it has {tensor.name[:200]}")
        else:
            replaced[name.replace(".modules_to_save.default", "")] = tensor
    if half := [module for module, pair in sides.items() if len(pair) != 2]:
        raise _invalid(folder, f"of {some_of(half)} it has only one of lora_A and lora_B")
    pairs = {module: (pair["A"], pair["B"]) for module, pair in sides.items()}
    return Adapter(source, pairs, replaced, config)


def merged(base: Source, adapter: Adapter) -> list[OutputTensor]:
    """Describe the tensors of the merged model."""
    names = base.by_name()
    module_of = {f"{module}.weight": module for module in adapter.pairs}
    lost = [name for name in (*module_of, *adapter.whole) if name not in names]
    if lost:
        raise _invalid(
            adapter.source.folder, f"the base {base.folder} lacks {some_of(sorted(lost))}"
        )
    outputs = []
    for tensor in base.tensors:
        if tensor.name in module_of:
            make = _merging(base, tensor, adapter, module_of[tensor.name])
        elif tensor.name in adapter.whole:
            make = _replacing(tensor, adapter)
        else:
            make = _reading(base, tensor)
        outputs.append(OutputTensor(tensor.name, tensor.dtype, tensor.shape, make))
    return outputs


def _reading(base: Source, tensor: StoredTensor):
    return lambda: base.read(tensor)


def _replacing(tensor: StoredTensor, adapter: Adapter):
    """Take a tensor of the adapter instead, in the dtype of the base."""
    new = adapter.whole[tensor.name]
    if new.shape != tensor.shape or new.dtype not in FLOATS or tensor.dtype not in FLOATS:
        raise _invalid(
            adapter.source.folder,
            f"{tensor.name} is {new.dtype} {list(new.shape)} and the base has {tensor.dtype}"
            f" {list(tensor.shape)}",
        )

    def make() -> Iterator[np.ndarray]:
        inner = new.shape[-1] if new.shape else 1
        for rows in in_rows(adapter.source.read(new), new.dtype, inner, block_bytes=BLOCK):
            yield rounded(rows, tensor.dtype, tensor.name).reshape(-1).view(np.uint8)

    return make


def _merging(base: Source, tensor: StoredTensor, adapter: Adapter, module: str):
    """Add scale * B A to the rows of a matrix, in float32."""
    a, b = adapter.pairs[module]
    fits = len(tensor.shape) == len(a.shape) == len(b.shape) == 2
    if not fits or (b.shape[0], a.shape[1]) != tensor.shape or b.shape[1] != a.shape[0]:
        raise _invalid(
            adapter.source.folder,
            f"{module} is {list(tensor.shape)}, A is {list(a.shape)} and B {list(b.shape)}",
        )
    if {tensor.dtype, a.dtype, b.dtype} - set(FLOATS):
        raise _invalid(
            adapter.source.folder, f"{module} is {tensor.dtype}, A {a.dtype}, B {b.dtype}"
        )
    scale = adapter.scale(module)

    def make() -> Iterator[np.ndarray]:
        right = whole(adapter.source, a).astype(np.float32) * np.float32(scale)
        left = whole(adapter.source, b).astype(np.float32)
        start = 0
        rows = in_rows(base.read(tensor), tensor.dtype, tensor.shape[1], block_bytes=BLOCK)
        for block in rows:
            change = left[start : start + len(block)] @ right
            start += len(block)
            new = rounded(block.astype(np.float32) + change, tensor.dtype, tensor.name)
            yield new.reshape(-1).view(np.uint8)

    return make


def _unsupported(path: Path, reason: str) -> Unimplemented:
    return Unimplemented(
        f"RTPJ-3621 ADAPTER_UNSUPPORTED: {path}: {reason}, which this build cannot merge. Merge the"
        " adapter with PEFT."
    )


def _invalid(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3620 ADAPTER_INVALID: the adapter in {folder} does not fit: {reason}. Give the base"
        " model that it was trained on, and a complete adapter."
    )
