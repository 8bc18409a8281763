"""Where does each setting come from?  A flag, else the environment, else a file, else its default.

One schema, the fields of `config.py`, gives all of them one name: `max_num_seqs` is the flag
`--max-num-seqs`, the variable `RTP_JAX_MAX_NUM_SEQS` and a key of the YAML file.  Unknown names are
errors, with the nearest one.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from rtp_jax.config import ENVIRONMENT_PREFIX, EngineConfig, ServerConfig, checked
from rtp_jax.errors import InvalidArgument
from rtp_jax.sampling_params import unknown_option
from rtp_jax.serving.route_config import RouteConfig

MAX_FILE_BYTES = 1 << 20
MODEL, CONFIG = "model", "config"
WORDS = {"true": True, "yes": True, "on": True, "1": True}
WORDS |= {"false": False, "no": False, "off": False, "0": False}
NOTHING = ("none", "null")
PASSWORD = re.compile(r"(://[^/@\s:]*:)[^@/\s]+@")


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and who chose it."""

    value: object
    source: str  # "default", "file serve.yaml", "environment RTP_JAX_PORT", "flag --port"


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective set."""

    of: Mapping[str, Setting]

    @property
    def model(self) -> str:
        """Which model to load.

        Raises:
          InvalidArgument: nobody said.
        """
        value = self.of[MODEL].value
        if not isinstance(value, str) or not value:
            raise InvalidArgument(
                "RTPJ-1201 MODEL_NOT_GIVEN: no model was named. Give a folder, `rtp-tiny` or a"
                " name from the Hugging Face cache as the first argument, as RTP_JAX_MODEL, or as"
                " model in the file.",
                field=MODEL,
            )
        return value

    def engine_options(self) -> dict[str, object]:
        """Return what somebody chose of the engine's options; `EngineConfig` checks them."""
        chosen = {
            name: self.of[name].value
            for name in engine_knobs()
            if self.of[name].source != "default"
        }
        EngineConfig.from_options(**chosen)  # now, and not after minutes of loading
        return chosen

    def server(self) -> ServerConfig:
        """Return the checked section of the server."""
        return checked(ServerConfig, {name: self.of[name].value for name in names_of(ServerConfig)})

    def route(self) -> RouteConfig:
        """Return the checked section of the router."""
        return checked(RouteConfig, {name: self.of[name].value for name in names_of(RouteConfig)})

    def describe(self, *, route: bool = False) -> str:
        """Show every setting of a worker, or of a router, as YAML, and where it came from."""
        others = engine_knobs() if route else names_of(RouteConfig)
        of = {name: each for name, each in self.of.items() if name not in others}
        width = max(map(len, of)) + 1
        shown = {name: _yaml(each.value) for name, each in of.items()}
        column = min(max(map(len, shown.values())), 24)
        return "\n".join(
            f"{name + ':':{width}} {shown[name]:{column}}  # {each.source}"
            for name, each in of.items()
        )


def engine_knobs() -> dict[str, dataclasses.Field]:
    """Name the fields of all sections of `EngineConfig`."""
    sections = [section.type for section in dataclasses.fields(EngineConfig)]
    return {
        knob.name: knob
        for section in sections
        for knob in dataclasses.fields(section)  # pyright: ignore[reportArgumentType]
    }


def knobs() -> dict[str, dataclasses.Field]:
    """Name every field, the server's and the router's included."""
    return engine_knobs() | names_of(ServerConfig) | names_of(RouteConfig)


def names_of(section: type) -> dict[str, dataclasses.Field]:
    """Name the fields of a section."""
    return {knob.name: knob for knob in dataclasses.fields(section)}


def gather(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings:
    """Put together what was said; values of flags and environment are text, or None: not given.

    Raises:
      InvalidArgument: a name is unknown, a value cannot be read, or the file is wrong.
    """
    known = knobs()
    found = {MODEL: Setting(None, "default")}
    found |= {name: Setting(knob.default, "default") for name, knob in known.items()}
    variables = {name: f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in environment}
    for name in environment:
        if name not in found and name != CONFIG:
            raise unknown_option("the environment", variables[name], "…", _variables(found))
    given = {name: text for name, text in flags.items() if text is not None}
    path = given.pop(CONFIG, None) or environment.get(CONFIG)
    if path is not None:
        for name, value in read_file(path, known=[*found]).items():
            found[name] = Setting(value, f"file {path}")
    for name, text in environment.items():
        if name != CONFIG:
            source = f"environment {variables[name]}"
            found[name] = Setting(read(known.get(name), text, source), source)
    for name, text in given.items():
        source = MODEL if name == MODEL else flag(name)
        found[name] = Setting(read(known.get(name), text, source), f"flag {source}")
    return Settings(found)


def read_file(path: str, *, known: Iterable[str]) -> dict[str, object]:
    """Read a YAML file of settings."""
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise _bad_file(path, f"has more than {MAX_FILE_BYTES} bytes")
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_file(path, f"cannot be read ({error.__class__.__name__})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _bad_file(path, f"is not YAML: {str(error).splitlines()[0]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _bad_file(path, f"holds a {content.__class__.__name__}, not names and values")
    names = [*known]
    for name, value in content.items():
        if name not in names:
            raise unknown_option(f"the file {path}", str(name), value, names)
    return content


def read(knob: dataclasses.Field | None, text: str, source: str) -> object:
    """Turn the text of a flag or a variable into a value of the field's type."""
    if knob is None:  # the model's name
        return text
    types = _types(knob)
    if type(None) in types and text.lower() in NOTHING:
        return None
    if bool in types:
        if text.lower() not in WORDS:
            raise _unreadable(knob.name, text, source, "true or false")
        return WORDS[text.lower()]
    for number, words in ((int, "an integer"), (float, "a number")):
        if number in types:
            try:
                return number(text)
            except ValueError as error:
                raise _unreadable(knob.name, text, source, words) from error
    return text


def flag(name: str) -> str:
    """Spell a name as a flag."""
    return "--" + name.replace("_", "-")


def _types(knob: dataclasses.Field) -> tuple[type, ...]:
    union = knob.type.__class__.__name__ == "UnionType"
    return knob.type.__args__ if union else (knob.type,)  # pyright: ignore


def _variables(names: Iterable[str]) -> list[str]:
    return [ENVIRONMENT_PREFIX + name.upper() for name in (*names, CONFIG)]


def _yaml(value: object) -> str:
    """Spell a value; what is a password in a URL is nobody's business."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).split("\n")[0]
    return PASSWORD.sub(r"\1***@", text)


def _unreadable(name: str, text: str, source: str, allowed: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-1202 SETTING_UNREADABLE: {source} is {text[:80]!r}; {name} is {allowed}. Write it"
        " as one.",
        field=name,
    )


def _bad_file(path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-1203 SETTINGS_FILE_INVALID: the settings file {path} {reason}. Write `name: value`"
        " lines; `rtp-jax serve --print-config` shows all names.",
        field=CONFIG,
    )
