"""Which flags does a command have?  One for each setting, with its help, and some for sampling."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

from rtp_jax.config import ServerConfig, environment_options
from rtp_jax.sampling_params import SamplingParams, unknown_option
from rtp_jax.serving.route_config import RouteConfig
from rtp_jax.serving.sampling_messages import SCALARS
from rtp_jax.serving.settings import (
    CONFIG,
    MODEL,
    Settings,
    engine_knobs,
    flag,
    gather,
    knobs,
    names_of,
    read,
)

SAMPLING = [name for name in SCALARS if name != "seed"]  # --seed is the engine's


def add_settings(parser: argparse.ArgumentParser, *, server: bool) -> None:
    """Add a flag for each setting of the engine and, for those that serve, of the server."""
    known = engine_knobs() | (names_of(ServerConfig) if server else {})
    _add_all(parser, known)


def add_route_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting of the server and of the router."""
    _add_all(parser, names_of(ServerConfig) | names_of(RouteConfig))


def _add_all(parser: argparse.ArgumentParser, known: Mapping[str, dataclasses.Field]) -> None:
    parser.add_argument(flag(CONFIG), help="YAML file of settings", metavar="FILE")
    group = parser.add_argument_group("settings", "also RTP_JAX_... variables and keys of the file")
    for name, knob in known.items():
        _add(group, name, f"{knob.metadata['help']} (default: {knob.default})", knob)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Gather the settings from flags, environment and file."""
    given = vars(arguments)
    names = [name for name in (MODEL, CONFIG, *knobs()) if name in given]
    return gather({name: given[name] for name in names}, environment_options())


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each number of `SamplingParams`, and for stop strings."""
    group = parser.add_argument_group("sampling", "those of SamplingParams")
    fields = {field.name: field for field in dataclasses.fields(SamplingParams)}
    for name in SAMPLING:
        words = f"default: {fields[name].default}"
        _add(group, name, words, fields[name])
    group.add_argument("--stop", action="append", metavar="TEXT", help="may be given again")


def sampling_of(arguments: argparse.Namespace, defaults: Mapping[str, object]) -> SamplingParams:
    """Build sampling options from the flags that were given, and what a command prefers."""
    given, chosen = vars(arguments), dict(defaults)
    for field in dataclasses.fields(SamplingParams):
        if field.name in SAMPLING and given[field.name] is not None:
            chosen[field.name] = read(field, given[field.name], flag(field.name))
    if arguments.stop:
        chosen["stop"] = arguments.stop
    return SamplingParams(**chosen)  # pyright: ignore[reportArgumentType]


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse arguments; a flag that does not exist is an error that names the nearest one."""
    parsed, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            known = [option for action in parser._actions for option in action.option_strings]
            raise unknown_option(parser.prog, name, value, known)
    if rest:
        parser.error(f"unexpected arguments: {' '.join(rest)}")
    return parsed


def _add(group, name: str, words: str, field: dataclasses.Field) -> None:
    words = words.replace("%", "%%")
    if field.type is bool:
        group.add_argument(
            flag(name), dest=name, action="store_const", const="true", default=None, help=words
        )
        group.add_argument(
            flag(f"no_{name}"), dest=name, action="store_const", const="false", help="the opposite"
        )
    else:
        group.add_argument(flag(name), dest=name, default=None, metavar="X", help=words)
