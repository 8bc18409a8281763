"""Modules that are read when something of them is first used.

Imports stand at the top of a file; what takes long to read, and many processes never need, stands
there by name.  `tests/test_floors.py` sees these names as it sees imports.
"""

import importlib
from typing import Any


class Late:
    """A module that is read when something of it is first used; threads that come second wait."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def late(name: str) -> Any:
    """Name a module that is read when something of it is first used."""
    return Late(name)
