"""The house has floors: a room imports only from floors below it, and host rooms import no jax.

`docs/design.md` draws the picture; this test reads the imports of every file and keeps it true.
Each rule is also run over a small house that breaks it.  What else the house forbids is in
`test_house_rules.py`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"errors", "late_imports", "environment"},
    {"sampling_params"},  # plain data too, but what a request is made of
    {"config", "request", "outputs", "metrics", "page_record", "wire"},
    {"parallel", "quant"},
    {"kernels", "weights", "transfer"},
    {"layers"},
    {"models", "cache", "speculative", "constraints"},
    {"text", "multimodal", "scheduler", "runner", "delivery"},
    {"engine", "router", "benchmark"},  # a benchmark sees servers, never the engine beside it
    {"serving", "checkpoints_tools"},
]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# Rooms that must work where jax is not even installed: they reach it through nobody.
PLAIN = {"errors", "late_imports", "sampling_params", "config", "request", "outputs", "metrics"}
PLAIN |= {"environment", "page_record", "transfer"}
PLAIN |= {"wire", "cache", "constraints", "text", "scheduler", "delivery", "router", "benchmark"}
PLAIN |= {"runner.memory_plan", "runner.workspace"}
# These two meet jax only through the runner that they build or are handed.
HOST_ONLY = PLAIN | {"engine", "serving"}
DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax", "tokamax", "jax_triton"}


def modules(root: Path) -> dict[str, Path]:
    """Name every module of the house by its path, without the leading `rtp_jax.`."""
    found = {}
    for folder, prefix in ((root / "rtp_jax", ""), (root / "checkpoints_tools", "tools.")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            found[name if not prefix else f"checkpoints_tools.{name}".rstrip(".")] = file
    return found


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """List the line and full name of everything that a file imports, at once or late."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are written in full"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "late":
            yield node.lineno, ast.literal_eval(node.args[0])


def own(name: str) -> str:
    """Shorten an imported name to the house's own, or to nothing if it is somebody else's."""
    return name if name.startswith("checkpoints_tools") else name.partition("rtp_jax.")[2]


def room(name: str) -> str:
    """Return the room of a module: the first part of its name."""
    return name.split(".")[0]


def wrong_floors(root: Path) -> list[str]:
    """List imports that go sideways or up, and rooms that have no floor."""
    wrong = []
    for name, file in modules(root).items():
        if not name:  # rtp_jax/__init__.py, the roof: it re-exports what users import
            continue
        if room(name) not in FLOOR_OF:
            wrong.append(f"{name}: `{room(name)}` is on no floor")
            continue
        for line, imported in imports(file):
            target = room(own(imported))
            if not target or target == room(name):
                continue
            if target not in FLOOR_OF:
                wrong.append(f"{name}:{line} imports `{target}`, which is on no floor")
            elif FLOOR_OF[target] >= FLOOR_OF[room(name)]:
                wrong.append(f"{name}:{line} imports {target}, which is not below it")
    return wrong


def meets_jax(root: Path) -> list[str]:
    """List host modules that import jax, and plain ones that reach it through others."""
    files = modules(root)
    wrong = []
    for name in files:
        listed = {name, room(name)}
        if not listed & HOST_ONLY:
            continue
        path = way_to_jax(name, files, follow=bool(listed & PLAIN))
        if path:
            wrong.append(" -> ".join(path))
    return wrong


def way_to_jax(name: str, files: dict[str, Path], *, follow: bool) -> list[str]:
    """Find how importing a module imports jax: the modules on the way, or nothing."""
    waiting, seen = [[name]], {name}
    while waiting:
        path = waiting.pop()
        for _, imported in imports(files[path[-1]]):
            if imported.split(".")[0] in DEVICE_LIBRARIES:
                return [*path, imported]
            for target in resolved(own(imported), files) if follow else ():
                if target not in seen:
                    seen.add(target)
                    waiting.append([*path, target])
    return []


def resolved(name: str, files: dict[str, Path]) -> list[str]:
    """List the modules that run when a name is imported: its packages, and itself."""
    parts = name.split(".")
    prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return [prefix for prefix in prefixes if prefix and prefix in files]


def test_every_import_goes_down():
    assert wrong_floors(ROOT) == []


def test_host_rooms_do_not_meet_jax():
    assert meets_jax(ROOT) == []


def test_there_is_a_house_to_look_at():
    assert {"errors", "config", "request", "kernels"} <= {room(name) for name in modules(ROOT)}


@pytest.fixture
def house(tmp_path):
    """Build a small house from the names of modules, with __ for a slash, and what they say."""

    def build(**files: str) -> Path:
        for name, text in files.items():
            path = name if name == "__init__" else name.replace("__", "/")
            file = tmp_path / "rtp_jax" / f"{path}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return build


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"layers": "from rtp_jax.models import llama"}, "layers:1 imports models"),
        ({"scheduler": "import rtp_jax.runner.step"}, "scheduler:1 imports runner"),
        ({"request": "def f():\n    from rtp_jax.metrics import x"}, "request:2 imports metrics"),
        ({"layers": "models = late('rtp_jax.models.llama')"}, "layers:1 imports models"),
        ({"attic": "import os"}, "attic: `attic` is on no floor"),
        ({"engine": "import rtp_jax.attic"}, "engine:1 imports `attic`, which is on no floor"),
    ],
)
def test_a_wrong_import_is_found(house, files, complaint):
    assert [found[: len(complaint)] for found in wrong_floors(house(**files))] == [complaint]


def test_imports_within_a_room_and_downwards_are_fine(house):
    files = {"cache__pool": "import rtp_jax.cache.index", "engine": "from rtp_jax import config"}
    assert wrong_floors(house(**files)) == []


def test_jax_in_a_host_room_is_found(house):
    files = {"engine": "import jax.numpy as jnp", "cache__pool": "from flax import nnx"}
    assert meets_jax(house(**files)) == ["cache.pool -> flax.nnx", "engine -> jax.numpy"]


def test_jax_reached_through_another_room_is_found(house):
    files = {"quant__schemes": "import jax", "runner__memory_plan": "import rtp_jax.quant.schemes"}
    assert meets_jax(house(**files)) == ["runner.memory_plan -> quant.schemes -> jax"]


def test_the_engine_may_reach_jax_through_the_runner(house):
    files = {"engine": "import rtp_jax.runner.step", "runner__step": "import jax"}
    files |= {"__init__": "import rtp_jax.engine", "cache": "import numpy"}  # the roof is nobody's
    assert meets_jax(house(**files)) == []
