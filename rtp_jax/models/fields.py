"""How is a `config.json` read?  Field by field, and whatever is missing or wrong is named.

A config is somebody else's file: every field has a type and a range, and an error says the field,
its value and what is allowed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rtp_jax.errors import CheckpointError

MAX_SIZE = 2**31 - 1


class Fields:
    """The fields of a config, or of a mapping inside it; a field that is null counts as absent."""

    def __init__(self, values: Mapping[str, Any], *, inside: str = ""):
        self.values, self.inside = values, inside

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.values.get(name) is not None

    def integer(
        self, name: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        """Read a whole number from `low` to `high`."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0) -> float:
        """Read a finite number of at least `low`."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"a number of at least {low:g}")
        if not math.isfinite(value) or value < low:
            raise self.wrong(name, f"a number of at least {low:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Read true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def choice(self, name: str, default: str | None, allowed: Sequence[str]) -> str:
        """Read one of a few words; anything else is a feature that this build lacks."""
        value = self._value(name, default)
        if value not in allowed:
            raise self.unsupported(name, f"Supported: {', '.join(allowed)}.")
        return value

    def part(self, name: str) -> "Fields":
        """Read a mapping; an absent one is empty."""
        value = self.values.get(name) or {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, "a mapping")
        return Fields(value, inside=f"{self.inside}{name}.")

    def words(self, name: str) -> tuple[str, ...]:
        """Read a list of words; an absent one is empty."""
        values = self.values.get(name)
        values = [] if values is None else values
        if not isinstance(values, list) or not all(isinstance(word, str) for word in values):
            raise self.wrong(name, "a list of words")
        return tuple(values)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Read a token id or a list of them; an absent one is none."""
        value = self.values.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self.wrong(name, "a token id, or a list of token ids")
        return tuple(ids)

    def refuse(self, name: str, advice: str) -> None:
        """Refuse a feature if the field that asks for it is there and not off."""
        if self.has(name) and self.values[name] is not False:
            raise self.unsupported(name, advice)

    def wrong(self, name: str, allowed: str) -> CheckpointError:
        """Describe a value that no config may have."""
        return CheckpointError(
            f"RTPJ-3202 CONFIG_FIELD_WRONG: config.json: {self._says(name)}, which must be "
            f"{allowed}. Download the config.json that belongs to the checkpoint.",
            field=self.inside + name,
        )

    def unsupported(self, name: str, advice: str) -> CheckpointError:
        """Describe a value that asks for what this build lacks."""
        return CheckpointError(
            f"RTPJ-3204 CONFIG_NOT_SUPPORTED: config.json: {self._says(name)}, which this build "
            f"cannot do. {advice}",
            field=self.inside + name,
        )

    def disagree(self, name: str, fact: str) -> CheckpointError:
        """Describe a value that is fine by itself and contradicts another."""
        return CheckpointError(
            f"RTPJ-3203 CONFIG_FIELDS_DISAGREE: config.json: {self._says(name)}, but {fact}. "
            "Download the config.json that belongs to the checkpoint.",
            field=self.inside + name,
        )

    def _value(self, name: str, default: Any) -> Any:
        if self.has(name):
            return self.values[name]
        if default is not None:
            return default
        raise CheckpointError(
            f"RTPJ-3201 CONFIG_FIELD_MISSING: config.json has no {self.inside}{name}, which the "
            "model needs. Download the config.json that belongs to the checkpoint.",
            field=self.inside + name,
        )

    def _says(self, name: str) -> str:
        return f"{self.inside}{name} is {str(self.values.get(name))[:200]!r}"
