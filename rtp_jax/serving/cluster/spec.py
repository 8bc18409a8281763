"""What should run?  The file of a cluster, read and checked before anything starts.

    name: demo
    model: rtp-tiny
    backend: local                  # or ray, with ray: {address: HOST:PORT or auto}
    options: {max_num_seqs: 8}      # of every worker, by the names of `rtp-jax serve`
    groups:
      - {name: prefill, role: prefill, count: 2, cpus: 0.5}
      - {name: decode, role: decode, count: 2, cpus: 0.5, options: {max_num_seqs: 16}}
    routers:
      ports: [50050, 50051]
      options: {policy: ttft}       # by the names of `rtp-jax route`

Ports, roles and members are the controller's business, so they are no options.  Read next:
`controller.py`.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtp_jax.config import ENVIRONMENT_PREFIX, ROLES, EngineConfig, ServerConfig, checked
from rtp_jax.errors import InvalidArgument, RtpError
from rtp_jax.serving.route_config import RouteConfig
from rtp_jax.serving.settings import engine_knobs, names_of
from rtp_jax.serving.yaml_file import read_yaml

BACKENDS = ("local", "ray")
ROUTER = "router"
MAX_FILE_BYTES, MAX_COUNT = 1 << 20, 10_000
ANYWHERE = ("0.0.0.0", "::")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
PLACED = {"port", "role", "members", "workers"}  # said by the controller
PORTS = ("http_port", "metrics_port")  # one number cannot be had twice on a machine


@dataclass(frozen=True, slots=True)
class Resources:
    """What one replica is given."""

    cpus: float = 1.0
    gpus: int = 0
    memory: int = 0  # bytes; 0: as much as it takes


@dataclass(frozen=True, slots=True)
class Group:
    """Equal workers of one role."""

    name: str
    role: str
    count: int
    resources: Resources
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routers:
    """The routers, which run beside the controller."""

    ports: tuple[int, ...] = (50050,)
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restarts:
    """How deaths are answered."""

    first_s: float = 0.5  # before the first restart; then twice as long each time
    longest_s: float = 30.0
    healthy_s: float = 60.0  # a replica that served so long has a clean record
    max_starts: int = 5  # deaths in a row without ever serving, and it is given up
    start_timeout_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Ray:
    """Which Ray places the workers."""

    address: str = ""
    insecure: bool = False  # without tokens, on an address that others can reach


@dataclass(frozen=True, slots=True)
class Spec:
    """A cluster as it should be."""

    name: str
    model: str
    backend: str
    groups: tuple[Group, ...]
    routers: Routers
    restarts: Restarts
    ray: Ray


def secrets_of(options: Mapping[str, object]) -> dict[str, str]:
    """Find options that a list of processes must not show: a URL that may hold a password."""
    url = options.get("kv_remote_url")
    return {"kv_remote_url": url} if isinstance(url, str) and ("@" in url or "?" in url) else {}


def read_spec(path: Path) -> Spec:
    """Read a file of a cluster.

    Raises:
      InvalidArgument: it cannot be read, or something in it can never work.
    """
    content = read_yaml(path, _bad)
    try:
        return _spec(content, path.stem)
    except _Fault as fault:
        raise _bad(path, str(fault)) from fault


class _Fault(Exception):
    """Why a file is wrong."""


def _spec(content: object, stem: str) -> Spec:
    top = _mapping(content, "the file")
    known = {part.name for part in dataclasses.fields(Spec)} | {"options"}
    _known(top, known, "the file")
    name = _name(top.get("name", stem), "name")
    model = top.get("model")
    if not isinstance(model, str) or not model:
        raise _Fault("names no model: write `model: FOLDER, rtp-tiny or org/model`")
    backend = top.get("backend", "local")
    if backend not in BACKENDS:
        raise _Fault(f"has backend {str(backend)[:40]!r}, which is none of {BACKENDS}")
    shared = _mapping(top.get("options", {}), "options")
    listed = top.get("groups")
    if not isinstance(listed, list) or not listed:
        raise _Fault("has no groups: list at least one with name, role and count")
    groups = tuple(_group(each, shared) for each in listed)
    names = [group.name for group in groups]
    if twice := [name for name in names if names.count(name) > 1]:
        raise _Fault(f"has two groups of the name {twice[0]}")
    if not any(group.count for group in groups if group.role != "prefill"):
        raise _Fault("has prefill workers alone, or none at all, so nobody would generate")
    ray = _section(Ray, top.get("ray", {}), "ray")
    if backend != "ray" and "ray" in top:
        raise _Fault("has options in ray and no `backend: ray`")
    if backend == "ray" and not ray.address:
        raise _Fault("has to name ray's address with `backend: ray`")
    if backend == "ray" and any(secrets_of(group.options) for group in groups):
        raise _Fault(
            "has a kv_remote_url with a password, and Ray shows arguments to all: set"
            f" {ENVIRONMENT_PREFIX}KV_REMOTE_URL for `ray start` on every node instead"
        )
    restarts = _section(Restarts, top.get("restarts", {}), "restarts")
    if restarts.max_starts < 1:
        raise _Fault("has max_starts=0 in restarts, so nothing would ever start; 1 is the least")
    return Spec(name, model, backend, groups, _routers(top.get("routers", {})), restarts, ray)


def _group(content: object, shared: Mapping[str, object]) -> Group:
    entry = _mapping(content, "a group")
    resources = [part.name for part in dataclasses.fields(Resources)]
    _known(entry, {"name", "role", "count", "options", *resources}, "a group")
    name = _name(entry.get("name"), "a group's name")
    if name == ROUTER:
        raise _Fault(f"has a group {ROUTER}, which is what routers are called")
    role = entry.get("role", "both")
    if role not in ROLES:
        raise _Fault(f"has role {str(role)[:40]!r} in group {name}, which is none of {ROLES}")
    count = _whole(entry.get("count", 1), f"count of {name}", 0, MAX_COUNT)
    own = _mapping(entry.get("options", {}), f"options of {name}")
    options = {**shared, **own}
    _check_options(options, (EngineConfig, ServerConfig), f"group {name}")
    _check_ports(options, f"group {name}")
    if options.get("host") in ANYWHERE:
        raise _Fault(
            f"has host {options['host']} in group {name}; others find a worker where it"
            " listens, so name an address that leads to it"
        )
    asked = {part: entry[part] for part in resources if part in entry}
    return Group(name, role, count, _section(Resources, asked, f"group {name}"), options)


def _routers(content: object) -> Routers:
    entry = _mapping(content, "routers")
    _known(entry, {"ports", "options"}, "routers")
    ports = entry.get("ports", list(Routers().ports))
    if not isinstance(ports, list) or not ports:
        raise _Fault("has to list the routers' ports: `ports: [50050]` is one router")
    ports = tuple(_whole(port, "a router's port", 0, 65535) for port in ports)
    if len({*ports} - {0}) != len([port for port in ports if port]):
        raise _Fault("gives two routers one port")
    options = _mapping(entry.get("options", {}), "options of the routers")
    _check_options(options, (ServerConfig, RouteConfig), "routers")
    if len(ports) > 1:
        _check_ports(options, "several routers")
    return Routers(ports, options)


def _check_options(options: Mapping[str, object], sections: tuple[type, ...], where: str) -> None:
    """Check options as the command would that gets them."""
    if placed := sorted(PLACED & {*options}):
        raise _Fault(f"has {placed[0]} among the options of {where}, which the controller chooses")
    left = dict(options)
    try:
        for section in sections:
            known = engine_knobs() if section is EngineConfig else names_of(section)
            part = {name: left.pop(name) for name in known if name in left}
            if section is EngineConfig:
                EngineConfig.from_options(**part)
            else:
                checked(section, part)
        if left:
            checked(sections[-1], left)
    except RtpError as error:
        raise _Fault(f"has an option in {where} that is none: {error}") from error


def _check_ports(options: Mapping[str, object], where: str) -> None:
    if fixed := [name for name in PORTS if options.get(name)]:
        raise _Fault(f"gives all of {where} one {fixed[0]}; 0 is a free one for each")


def _section(section: type, content: object, where: str) -> Any:
    """Build a dataclass of numbers and words from a mapping."""
    entry = _mapping(content, where)
    fields = {part.name: part for part in dataclasses.fields(section)}
    _known(entry, set(fields), where)
    for name, value in entry.items():
        kind = fields[name].type
        right = isinstance(value, (int, float) if kind is float else kind)  # pyright: ignore[reportArgumentType]
        if not right or (kind is not bool and isinstance(value, bool)):
            raise _Fault(f"has {name}={str(value)[:40]!r} in {where}, which is no {kind.__name__}")  # pyright: ignore
        if isinstance(value, int | float) and not 0 <= value < 1e15:
            raise _Fault(f"has {name}={value} in {where}, which is less than 0 or no size")
    return section(**entry)


def _mapping(content: object, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise _Fault(f"has no names and values in {where}")
    return content


def _known(entry: Mapping[str, object], known: set[str], where: str) -> None:
    if unknown := [name for name in entry if name not in known]:
        raise _Fault(f"has {unknown[0][:40]!r} in {where}, which is none of {sorted(known)}")


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _Fault(f"has {str(value)[:40]!r} as {where}: up to 40 of a-z, 0-9 and -")
    return value


def _whole(value: object, where: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _Fault(f"has {str(value)[:40]!r} as {where}: a whole number from {low} to {high}")
    return value


def _bad(path: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-5620 CLUSTER_FILE_INVALID: {path} {reason}. docs/cluster.md shows a file.",
        field="file",
    )
