"""The options of every command that writes a checkpoint, and the way they all end.

Read next: `job.py`.
"""

import argparse
import json
import os
from typing import Any

from checkpoints_tools import job
from checkpoints_tools.companions import companions, copied
from checkpoints_tools.job import Job, Preparation
from checkpoints_tools.report import MB, Report
from checkpoints_tools.source import CONFIG, ORBAX, SAFETENSORS, Source
from checkpoints_tools.stored import StoredTensor
from checkpoints_tools.target import Target, target_of
from checkpoints_tools.writers import (
    OutputFile,
    OutputTensor,
    given,
    orbax_files,
    safetensors_files,
)
from rtp_jax.errors import InvalidArgument

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
DEFAULT_FILE_BYTES = "5GB"


def add_output_arguments(parser: argparse.ArgumentParser, *, formats: bool = False) -> None:
    """Add the options that say how an output is written."""
    if formats:
        parser.add_argument("--to", required=True, choices=(ORBAX, SAFETENSORS), help="format")
    parser.add_argument(
        "--max-file-size",
        default=DEFAULT_FILE_BYTES,
        metavar="SIZE",
        help="of a safetensors file, such as 500MB or 5GB (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check and show, write nothing")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an output of this tool")


def file_bytes(text: str) -> int:
    """Read a size such as 500MB."""
    number = text.rstrip("KMGB")
    unit = text[len(number) :]
    if not number.isdecimal() or unit not in UNITS or not 0 < int(number) * UNITS[unit] <= 1 << 50:
        raise InvalidArgument(
            f"RTPJ-3613 SIZE_INVALID: --max-file-size {text[:40]!r} is no size. Write a whole"
            " number and KB, MB or GB, for example 500MB."
        )
    return int(number) * UNITS[unit]


def target(parsed: argparse.Namespace, source: Source) -> Target:
    """Check where the output is to go, before anything is read."""
    return target_of(
        parsed.target, source=source.folder, resume=parsed.resume, overwrite=parsed.overwrite
    )


def finish(
    parsed: argparse.Namespace,
    report: Report,
    *,
    to: Target,
    source: Source,
    tensors: list[OutputTensor],
    config: dict[str, Any] | None,
    choices: dict[str, Any],
    preparation: Preparation | None = None,
) -> int:
    """Write tensors, config and companions, or show what would be written.

    Args:
      parsed: the options of `add_output_arguments`.
      report: told what is done.
      to: the folder that will hold the output.
      source: where config and companions come from.
      tensors: what to write.
      config: what `config.json` says, where it changes.
      choices: all that decides the bytes, besides the files of `source`.
      preparation: what has to be done before tensors can be made.
    """
    limit = file_bytes(parsed.max_file_size)
    kind = choices.get("to", SAFETENSORS)
    if kind == ORBAX:
        files, completing = orbax_files(tensors)
    else:
        files, completing = safetensors_files(tensors, max_file_bytes=limit)
    found, behind = companions(source.folder)
    described = {
        "source": source.identity,
        "companions": [
            (file.name, os.stat(source.folder / file.name).st_mtime_ns) for file in found
        ],
        "choices": {**choices, "max_file_bytes": limit},
        "config": config,
    }
    work = Job(
        files=files,
        small=found,
        completing=[*completing, *_config(source, config)],
        inputs=json.dumps(described, sort_keys=True),
        preparation=preparation,
    )
    for name in behind:
        report.event("left_behind", f"not copied: {name}", name=name)
    job.check_space(work, to)
    words = f"{len(tensors)} tensors, {work.num_bytes / MB:.1f} MB in {len(work.all_files)} files"
    if parsed.dry_run:
        report.result("plan", f"would write {to.path}: {words}", work.summary())
        return 0
    job.run(work, to, report)
    report.result("done", f"{to.path}: {words}", {"target": str(to.path), **work.summary()})
    return 0


def _config(source: Source, config: dict[str, Any] | None) -> list[OutputFile]:
    if source.config is None:
        return []
    if config is None:
        return [copied(source.folder, CONFIG)]
    return [given(CONFIG, json.dumps(config, indent=2).encode() + b"\n")]


def kept(source: Source, tensor: StoredTensor) -> OutputTensor:
    """Describe a tensor of a source as it is."""
    return OutputTensor(tensor.name, tensor.dtype, tensor.shape, lambda: source.read(tensor))


def unchanged(source: Source) -> list[OutputTensor]:
    """Describe all tensors of a source as they are."""
    return [kept(source, tensor) for tensor in source.tensors]
