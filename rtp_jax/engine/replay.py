"""A record of a failed request, from which it can be run again: ids, options, seed, versions.

Written only where `dump_failed` names a folder; it holds token ids, which are the prompt.
"""

import dataclasses
import hashlib
import json
import logging
from importlib import metadata
from pathlib import Path

from rtp_jax.errors import RtpError
from rtp_jax.request import Request

logger = logging.getLogger(__name__)
PACKAGES = ("rtp_jax", "jax", "jaxlib", "flax", "numpy")


def write_record(folder: Path, request: Request, error: RtpError, model: str) -> None:
    """Write one JSON file; a full disk is logged and harms nobody."""
    record = {
        "error": str(error),
        "model": model,
        "request_id": request.id,
        "prompt_token_ids": request.prompt_token_ids,
        "sampling_params": dataclasses.asdict(request.params),
        "seed": request.seed,
        "max_tokens": request.max_tokens,
        "versions": {name: _version(name) for name in PACKAGES},
    }
    name = hashlib.sha256(request.id.encode("utf-8", "replace")).hexdigest()[
        :16
    ]  # an id may hold any character
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / f"failed-{name}.json").write_text(json.dumps(record, indent=1, default=str))
    except OSError as reason:
        logger.warning("no record of failed request %s: %s", request.id, reason)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
