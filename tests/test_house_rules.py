"""What the house forbids, read from its syntax: names, sizes, pickles, hidden inputs, stray jits.

A rule is a function from one source file to complaints.  `BROKEN` proves each rule on a file that
breaks it, `FINE` on one that only looks as if.  Which room may import which is in `test_floors.py`.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("rtp_jax", "checkpoints_tools", "tests", "tools", "bench")
PRODUCT = ("rtp_jax/", "checkpoints_tools/")
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "base", "manager"}
# Formats that can run code when they are read, and the module that sends them between processes.
UNSAFE = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}
UNSAFE |= {"multiprocessing"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load"}
# What an extra installs is imported where it is used, because it may be absent.
EXTRAS = {"jax_triton", "triton", "tokamax", "aiohttp", "llguidance", "PIL", "ray", "redis"}
EXTRAS |= {"smg_grpc_proto", "tritonclient", "matplotlib"}
# Settings are read in the first; the other is about processes that we start and libraries.
ENVIRONMENT_HOMES = {"rtp_jax/config.py", "rtp_jax/environment.py"}
ENVIRONMENT = {"os.environ", "os.getenv", "os.putenv", "os.environb"}
CATCH_ALL = {
    "rtp_jax/delivery/delivery.py",  # the wall around one request
    "rtp_jax/engine/loop.py",  # the top of the engine thread
}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_KERNEL_LINES = 400, 60, 120


@dataclass(frozen=True)
class Source:
    """One file: where it is in the house, its text and its syntax, which is read once."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """Parse the file."""
        return ast.parse(self.text, self.path)

    @functools.cached_property
    def all_nodes(self) -> list[ast.AST]:
        """List every node, wherever in the file."""
        return list(ast.walk(self.tree))

    def nodes(self, *kinds: type[ast.AST]) -> Iterator:
        """Go through all nodes of some kinds."""
        return (node for node in self.all_nodes if isinstance(node, kinds))

    @functools.cached_property
    def uses(self) -> list[tuple[int, str]]:
        """List the line and dotted name of every name that is read, imported ones included."""
        found = [(node.lineno, ast.unparse(node)) for node in self.nodes(ast.Attribute, ast.Name)]
        for node in self.nodes(ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        for node in self.nodes(ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        return found


Rule = Callable[[Source], Iterator[str]]


def vague_names(source: Source) -> Iterator[str]:
    """A name says what is inside."""
    for part in source.path.removesuffix(".py").split("/"):
        if VAGUE & set(part.split("_")):
            yield f"`{part}` says nothing about what is inside"


def unsafe_formats(source: Source) -> Iterator[str]:
    """Nothing that is read may be able to run."""
    for node in source.nodes(ast.Import, ast.ImportFrom):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        for name in names:
            if (name or "").split(".")[0] in UNSAFE:
                yield f"{node.lineno}: imports {name}"
    for node in source.nodes(ast.Call):
        if ast.unparse(node.func) in UNSAFE_CALLS:
            yield f"{node.lineno}: calls {ast.unparse(node.func)}"
        said = [ast.unparse(k.value) for k in node.keywords if k.arg == "allow_pickle"]
        if said not in ([], ["False"]):
            yield f"{node.lineno}: says allow_pickle"


def hidden_defaults(source: Source) -> Iterator[str]:
    """What an object has is known, so nothing asks for an attribute with a default."""
    for node in source.nodes(ast.Call):
        if in_product(source) and ast.unparse(node.func) == "getattr" and len(node.args) == 3:
            yield f"{node.lineno}: {ast.unparse(node)}"


def long_files(source: Source) -> Iterator[str]:
    """A file is one subject."""
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{lines} lines, at most {MAX_FILE_LINES}"


def long_functions(source: Source) -> Iterator[str]:
    """A function is one thought; its docstring does not count."""
    limit = MAX_KERNEL_LINES if "kernels/" in source.path else MAX_FUNCTION_LINES
    for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        if lines > limit:
            yield f"{node.lineno}: {node.name} has {lines} lines, at most {limit}"


def late_imports(source: Source) -> Iterator[str]:
    """Imports are at the top of the file, but for the libraries of extras and at two doors."""
    # The front door shows `Engine` to clients that have no jax; the other one is read by name.
    if source.path in {"rtp_jax/__init__.py", "rtp_jax/late_imports.py"}:
        return
    top = {id(node) for node in source.tree.body}
    for node in source.nodes(ast.Import, ast.ImportFrom):
        if id(node) in top:
            continue
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        if in_product(source) and not all((name or "").split(".")[0] in EXTRAS for name in names):
            yield f"{node.lineno}: {ast.unparse(node)} is not at the top"
    for line, name in source.uses:
        if in_product(source) and name in {"importlib.import_module", "__import__"}:
            yield f"{line}: {name}"


def environment_readers(source: Source) -> Iterator[str]:
    """Settings come in through `config.py` alone."""
    if in_product(source) and source.path not in ENVIRONMENT_HOMES:
        for line, name in source.uses:
            if name in ENVIRONMENT:
                yield f"{line}: reads {name}"


def stray_jits(source: Source) -> Iterator[str]:
    """Programs are compiled where device state lives, and never by `nnx.jit`."""
    home = source.path.startswith("rtp_jax/runner/")
    home |= source.path == "rtp_jax/multimodal/encoder.py"
    for line, name in source.uses:
        if source.path.startswith("rtp_jax/") and (
            (name in {"jax.jit", "jax.pmap"} and not home) or name in {"nnx.jit", "flax.nnx.jit"}
        ):
            yield f"{line}: {name}"


def guessed_platforms(source: Source) -> Iterator[str]:
    """The platform is an argument: programs for a GPU are compiled where there is none."""
    chosen = source.path == "rtp_jax/runner/device.py"  # once, at the start
    for line, name in source.uses:
        if in_product(source) and name == "jax.default_backend" and not chosen:
            yield f"{line}: {name}"


def broad_catches(source: Source) -> Iterator[str]:
    """Errors are caught by name, where they are handled; tidying up and raising again is fine."""
    for node in source.nodes(ast.ExceptHandler):
        caught = ast.unparse(node.type) if node.type else "everything"
        broad = caught in {"everything", "Exception", "BaseException"}
        again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if broad and not again and in_product(source) and source.path not in CATCH_ALL:
            yield f"{node.lineno}: catches {caught}"


def missing_docstring(source: Source) -> Iterator[str]:
    """The first thing in a file is what it is for."""
    generated = source.path.startswith("rtp_jax/wire/") and not source.path.endswith("__init__.py")
    if ast.get_docstring(source.tree) is None and not generated:
        yield "has no docstring"


RULES: list[Rule] = [
    vague_names,
    unsafe_formats,
    hidden_defaults,
    long_files,
    long_functions,
    late_imports,
    environment_readers,
    stray_jits,
    guessed_platforms,
    broad_catches,
    missing_docstring,
]


def in_product(source: Source) -> bool:
    """Say whether users install this file."""
    return source.path.startswith(PRODUCT)


@functools.cache
def sources(root: Path) -> list[Source]:
    """Read every Python file of the house, but for generated stubs."""
    files = [file for folder in FOLDERS for file in sorted((root / folder).rglob("*.py"))]
    written = [file for file in files if not file.name.endswith(("_pb2.py", "_pb2_grpc.py"))]
    return [Source(str(file.relative_to(root)), file.read_text()) for file in written]


def undocumented_packages(root: Path) -> list[str]:
    """List folders of the product with code but no `__init__.py` to say what they are for."""
    folders = {file.parent for part in PRODUCT for file in (root / part).rglob("*.py")}
    missing = [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()]
    return [str(folder.relative_to(root)) for folder in missing]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(rule):
    assert [f"{s.path}: {complaint}" for s in sources(ROOT) for complaint in rule(s)] == []


def test_every_package_says_what_it_is_for():
    assert undocumented_packages(ROOT) == []


def test_a_package_without_a_word_is_found(tmp_path):
    (tmp_path / "rtp_jax" / "attic").mkdir(parents=True)
    (tmp_path / "rtp_jax" / "attic" / "old.py").write_text("")
    (tmp_path / "rtp_jax" / "__init__.py").write_text("")
    assert undocumented_packages(tmp_path) == ["rtp_jax/attic"]


LONG = "x = 1\n" * 401
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 60
DOCUMENTED = 'def f():\n    """A\n\n    B.\n    """\n' + "    x = 1\n" * 59
BROKEN = [
    (vague_names, "rtp_jax/cache/utils.py", ""),
    (vague_names, "tests/common/test_x.py", ""),
    (vague_names, "rtp_jax/page_manager.py", ""),
    (unsafe_formats, "tests/x.py", "import pickle"),
    (unsafe_formats, "tools/x.py", "from multiprocessing.pool import Pool"),
    (unsafe_formats, "rtp_jax/x.py", "np.load(path, allow_pickle=True)"),
    (unsafe_formats, "rtp_jax/x.py", "yaml.load(text)"),
    (hidden_defaults, "rtp_jax/x.py", "getattr(config, 'size', 3)"),
    (long_files, "tests/x.py", LONG),
    (long_functions, "rtp_jax/x.py", LONG_FUNCTION),
    (late_imports, "rtp_jax/x.py", "def f():\n    import numpy"),
    (late_imports, "rtp_jax/x.py", "try:\n    import numpy\nexcept ImportError:\n    pass"),
    (late_imports, "rtp_jax/x.py", "importlib.import_module('numpy')"),
    (environment_readers, "rtp_jax/x.py", "import os\nos.environ['A']"),
    (environment_readers, "rtp_jax/x.py", "from os import getenv"),
    (stray_jits, "rtp_jax/layers/x.py", "functools.partial(jax.jit, donate_argnums=0)"),
    (stray_jits, "rtp_jax/layers/x.py", "from jax import jit"),
    (stray_jits, "rtp_jax/runner/x.py", "from flax import nnx\nnnx.jit(f)"),
    (guessed_platforms, "rtp_jax/x.py", "jax.default_backend()"),
    (broad_catches, "rtp_jax/cache/x.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (broad_catches, "rtp_jax/cache/x.py", "try:\n    f()\nexcept:\n    pass"),
    (missing_docstring, "rtp_jax/x.py", "x = 1"),
]
FINE = [
    (vague_names, "rtp_jax/database.py", ""),
    (unsafe_formats, "rtp_jax/x.py", "yaml.safe_load(text)\nnp.load(path, allow_pickle=False)"),
    (hidden_defaults, "rtp_jax/x.py", "getattr(config, name)"),
    (long_functions, "rtp_jax/x.py", DOCUMENTED),
    (long_functions, "rtp_jax/kernels/x/gpu.py", LONG_FUNCTION),
    (late_imports, "rtp_jax/x.py", "def f():\n    import jax_triton"),
    (late_imports, "rtp_jax/__init__.py", "def f():\n    import jax"),
    (late_imports, "rtp_jax/late_imports.py", "importlib.import_module('numpy')"),
    (guessed_platforms, "rtp_jax/runner/device.py", "jax.default_backend()"),
    (environment_readers, "rtp_jax/config.py", "import os\nos.environ['A']"),
    (stray_jits, "rtp_jax/runner/step.py", "jax.jit(f)"),
    (broad_catches, "rtp_jax/engine/loop.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (broad_catches, "rtp_jax/x.py", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    (missing_docstring, "rtp_jax/x.py", '"""Answer."""'),
]


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_a_broken_rule_is_found(rule, path, text):
    assert len(list(rule(Source(path, text)))) == 1


@pytest.mark.parametrize(("rule", "path", "text"), FINE)
def test_what_only_looks_like_it_is_fine(rule, path, text):
    assert list(rule(Source(path, text))) == []


def test_every_rule_is_proved():
    assert {rule for rule, _, _ in BROKEN} == set(RULES)
