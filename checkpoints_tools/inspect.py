"""Say what a checkpoint holds and what memory it will take; reads headers only.

Which architecture, how many parameters, in which numbers, how many bytes; and for meshes of several
sizes, what each device holds and how many tokens of KV fit beside it.
"""

import argparse
import collections
from typing import Any

from checkpoints_tools import engine_door, mesh_memory
from checkpoints_tools.report import MB, Report
from checkpoints_tools.source import CONFIG, Source, open_source
from rtp_jax.errors import CheckpointError, InvalidArgument, RtpError

MAX_MESH = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", metavar="SRC", help="a folder, or the name of a model")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument(
        "--mesh", default="1,2,4,8", metavar="N,N", help="devices that share the model"
    )
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--memory", metavar="GB", type=float, help="of each device; default: this machine's"
    )
    group = parser.add_argument_group("settings of the engine")
    for name in mesh_memory.SETTINGS:
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="X")


def run(parsed: argparse.Namespace, report: Report) -> int:
    """Inspect."""
    source = open_source(parsed.source)
    found = _facts(source)
    if parsed.tensors:
        found["tensors"] = [
            {"name": t.name, "dtype": t.dtype.name, "shape": list(t.shape), "bytes": t.num_bytes}
            for t in source.tensors
        ]
    sizes = _mesh_sizes(parsed.mesh)
    try:
        found["memory"] = _memory(source, parsed, sizes)
    except RtpError as reason:
        if reason.id.startswith(
            ("RTPJ-10", "RTPJ-11", "RTPJ-12")
        ):  # a setting of the engine is wrong
            raise
        found["memory_unknown"] = str(reason)
    report.result("inspect", _words(found), found)
    return 0


def _facts(source: Source) -> dict[str, Any]:
    """What the headers say."""
    bytes_of: collections.Counter[str] = collections.Counter()
    numbers_of: collections.Counter[str] = collections.Counter()
    for tensor in source.tensors:
        bytes_of[tensor.dtype.name] += tensor.num_bytes
        numbers_of[tensor.dtype.name] += tensor.size
    config = source.config or {}
    largest = max(source.tensors, key=lambda tensor: tensor.num_bytes, default=None)
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return {
        "folder": str(source.folder),
        "format": source.kind,
        "architecture": ", ".join(map(str, config.get("architectures") or [])) or None,
        "quantization": method,
        "num_tensors": len(source.tensors),
        "stored_numbers": sum(numbers_of.values()),
        "bytes": source.num_bytes,
        "num_files": len(source.identity),
        "dtypes": {
            name: {"numbers": numbers_of[name], "bytes": bytes_of[name]} for name in bytes_of
        },
        "largest_tensor": largest and {"name": largest.name, "bytes": largest.num_bytes},
        "manifest": source.manifest is not None,
    }


def _memory(source: Source, parsed: argparse.Namespace, sizes: list[int]) -> dict[str, Any]:
    if source.config is None:
        raise CheckpointError(
            f"RTPJ-3010 FILE_MISSING: {source.folder / CONFIG} does not exist. Complete the"
            " download of the model."
        )
    build = engine_door.building
    spec = build.read_spec(source.config)
    settings = {name: getattr(parsed, name) for name in mesh_memory.SETTINGS}
    bytes_each = None if parsed.memory is None else int(parsed.memory * 1e9)
    return {
        "parameters": spec.num_parameters,
        "meshes": mesh_memory.estimates(
            build, spec, settings, sizes, platform=parsed.platform, device_bytes=bytes_each
        ),
    }


def _mesh_sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= MAX_MESH for part in parts):
        raise InvalidArgument(
            f"RTPJ-3615 MESH_INVALID: --mesh {text[:80]!r} is not a list of device counts. Write"
            f" numbers from 1 to {MAX_MESH} and commas, for example 1,2,4."
        )
    return [int(part) for part in parts]


def _words(found: dict[str, Any]) -> str:
    """Lay the answer out for a reader."""
    lines = [
        f"folder        {found['folder']}",
        f"format        {found['format']}, {found['num_files']} files"
        + (", with a manifest" if found["manifest"] else ""),
        f"architecture  {found['architecture'] or 'unknown: no config.json'}",
        f"tensors       {found['num_tensors']}, {found['bytes'] / MB:.1f} MB",
    ]
    if found["quantization"]:
        lines.append(f"quantized     {found['quantization']}")
    for name, dtype in found["dtypes"].items():
        lines.append(f"  {name:13} {dtype['numbers']:>14} numbers {dtype['bytes'] / MB:>10.1f} MB")
    if largest := found["largest_tensor"]:
        lines.append(f"largest       {largest['name']}, {largest['bytes'] / MB:.1f} MB")
    for tensor in found.get("tensors", ()):
        lines.append(f"  {tensor['name']} {tensor['dtype']} {tensor['shape']}")
    if "memory" not in found:
        return "\n".join([*lines, f"memory        unknown: {found['memory_unknown']}"])
    memory = found["memory"]
    lines += [f"parameters    {memory['parameters']}", mesh_memory.HEADER]
    return "\n".join([*lines, *(mesh_memory.line(row) for row in memory["meshes"])])
