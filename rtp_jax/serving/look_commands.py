"""`rtp-jax info`, `plan` and `doctor`: looking without serving."""

import argparse
import dataclasses
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from google.protobuf import json_format

from rtp_jax.config import RunnerConfig, hub_cache, program_cache
from rtp_jax.errors import RtpError
from rtp_jax.serving.auth import read_tokens
from rtp_jax.serving.client import Client
from rtp_jax.serving.flags import add_settings, parse, settings_of
from rtp_jax.serving.local_engine import decided
from rtp_jax.weights.locate import find_model

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "grpcio", "protobuf", "tokenizers", "sentencepiece")
DEVICES = "import jax; print(', '.join(f'{d.platform}: {d.device_kind}' for d in jax.devices()))"
DEVICE_TIMEOUT_S = 120.0
MIN_FREE_BYTES = 1 << 30


def info(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Say what a model is, from its files, or what a server is."""
    parser.add_argument("model", nargs="?", help="a folder, rtp-tiny, or a name org/model")
    parser.add_argument("--server", metavar="HOST:PORT", help="ask this server")
    parser.add_argument("--token-file", metavar="FILE", help="its first line is the bearer token")
    add_settings(parser, server=False)
    parsed = parse(parser, arguments)
    if parsed.server is not None:
        return _ask(parsed)
    found = decided(settings_of(parsed))
    print(f"name: {found.name}\nfolder: {found.folder}\ndtype: {found.dtype}")
    for field in dataclasses.fields(found.spec):
        print(f"{field.name}: {getattr(found.spec, field.name)}")
    return 0


def plan(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Show the memory plan of a model under the settings given."""
    parser.add_argument("model", nargs="?", help="a folder, rtp-tiny, or a name org/model")
    add_settings(parser, server=False)
    print(decided(settings_of(parse(parser, arguments))).memory.table())
    return 0


def doctor(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Check what an engine needs; the exit code says whether all is well."""
    parse(parser, arguments)
    all_well = True
    for name, check in CHECKS.items():
        for well, words in check():
            all_well &= well
            print(f"{'ok  ' if well else 'FAIL'} {name}: {words}", flush=True)
    return 0 if all_well else 1


def _ask(parsed: argparse.Namespace) -> int:
    token = read_tokens(parsed.token_file)[0] if parsed.token_file else None
    with Client(parsed.server, token=token) as client:
        for message in (client.server_info(), client.model_info(), client.loads()):
            print(json_format.MessageToJson(message, preserving_proto_field_name=True))
    return 0


Finding = tuple[bool, str]


def _versions() -> Iterator[Finding]:
    yield sys.version_info[:2] in ((3, 11), (3, 12)), f"Python {sys.version.split()[0]}"
    for package in PACKAGES:
        try:
            yield True, f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield False, f"{package} is not installed"


def _devices() -> Iterator[Finding]:
    """Ask another process: a broken driver may hang."""
    command = [sys.executable, "-c", DEVICES]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=DEVICE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        yield False, f"jax found no device within {DEVICE_TIMEOUT_S:g} s"
        return
    lines = (asked.stdout if asked.returncode == 0 else asked.stderr).strip().splitlines()
    yield asked.returncode == 0, lines[-1] if lines else "jax does not start"


def _model() -> Iterator[Finding]:
    try:
        yield True, f"rtp-tiny in {find_model('rtp-tiny', hub_cache=hub_cache())}"
    except RtpError as error:
        yield False, str(error)


def _program_cache() -> Iterator[Finding]:
    folder = program_cache(RunnerConfig())
    if folder is None or not folder.exists():
        yield True, f"{folder} will be made"
        return
    status = folder.stat()
    private = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    yield private, f"{folder} has mode {stat.filemode(status.st_mode)}"
    free = shutil.disk_usage(folder).free
    yield free > MIN_FREE_BYTES, f"{free / 2**30:.1f} GiB are free there"


def _ports() -> Iterator[Finding]:
    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", 0))
        except OSError as error:
            yield False, f"no port of 127.0.0.1 can be bound: {error}"
            return
        yield True, f"127.0.0.1:{listening.getsockname()[1]} can be bound"


def _temporary_files() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.home()).free
    yield free > MIN_FREE_BYTES, f"{free / 2**30:.1f} GiB are free in {Path.home()}"


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": _versions,
    "devices": _devices,
    "built-in model": _model,
    "compile cache": _program_cache,
    "ports": _ports,
    "disk": _temporary_files,
}
