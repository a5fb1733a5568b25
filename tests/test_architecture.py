"""What may know what: the import rules of the house, read from the source."""

import ast
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xreg"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 420  # lines of a module

JOBS = {"registration", "regression", "splat", "shape", "tomography"}
# A job stands on the renderer and never on another job, but for these.
MAY_ALSO = {
    ("splat", "tomography"),
    ("tomography", "splat"),
    ("shape", "registration"),
    ("regression", "registration"),
}
# Rooms that may know a few others only; any other room may know all but the jobs and the command line.
KNOWS = {
    "errors": set(),
    "geometry": {"errors"},
    "attenuation": {"errors"},
    "ops": {"errors"},
    "volume": {"errors", "geometry", "attenuation", "io"},
    "io": {"errors", "geometry", "attenuation", "volume"},
    "renderer": {"errors", "geometry", "attenuation", "volume", "io", "ops"},
    "xray": {"errors"},
    "optional": {"errors"},
}
HEAVY = {
    "torch", "nibabel", "pydicom", "scipy", "PIL", "matplotlib", "SimpleITK", "roma", "safetensors",
    "nanodrr",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """`module` is dotted; `names` are what is taken from it."""

    module: str
    names: tuple[str, ...]
    line: int
    top: bool  # at the top level of its file, and not for type checkers only


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    return list(_walk(tree, package, True))


def _walk(node: ast.AST, package: list[str], top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(a.name, (), child.lineno, top) for a in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else []
            module = ".".join([*base, *([child.module] if child.module else [])])
            yield Import(module, tuple(a.name for a in child.names), child.lineno, top)
        inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _walk(child, package, top and not inner and not typing)


def rooms_of(found: Import) -> set[str]:
    """Rooms of xreg that an import enters: `from xreg import drr` enters the room that drr lives in."""
    parts = found.module.split(".")
    if parts[0] != "xreg":
        return set()
    if len(parts) > 1:
        return {parts[1]}
    return {HOMES.get(name, name) for name in found.names} - {"__version__"}


def _homes() -> dict[str, str]:
    import xreg

    return {name: home.split(".")[1] for name, home in xreg._HOMES.items()}


HOMES = _homes()


def forbidden(room: str, other: str) -> bool:
    if other == room or room == "cli":
        return False
    if room in KNOWS:
        return other not in KNOWS[room]
    if room in JOBS:
        return other == "cli" or (other in JOBS and (room, other) not in MAY_ALSO)
    return other == "cli" or other in JOBS


ROOMS = [path for path in MODULES if path != PACKAGE / "__init__.py"]  # which names them all, and loads none


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    room = name_of(path).split(".")[1]
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} knows {other}"
        for found in imports_of(path)
        for other in sorted(rooms_of(found))
        if forbidden(room, other)
    ]
    assert not wrong


def test_the_rules_can_fail() -> None:
    assert forbidden("geometry", "volume")
    assert forbidden("ops", "geometry")
    assert forbidden("io", "renderer")
    assert forbidden("volume", "ops")
    assert forbidden("renderer", "registration")
    assert forbidden("registration", "splat")
    assert forbidden("splat", "shape")
    assert forbidden("registration", "shape")
    assert forbidden("similarity", "registration")
    assert forbidden("similarity", "cli")
    assert not forbidden("shape", "registration")
    assert not forbidden("regression", "registration")
    assert forbidden("registration", "regression")
    assert forbidden("xray", "renderer")
    assert not forbidden("splat", "tomography")
    assert not forbidden("cli", "splat")
    assert rooms_of(Import("xreg", ("drr", "Volume", "__version__"), 1, True)) == {"renderer", "volume"}
    found = imports_of(PACKAGE / "volume.py")
    assert {"xreg.errors", "xreg.io"} <= {i.module for i in found}, "relative imports are resolved"
    assert {i.top for i in found if i.module == "xreg.io"} == {False}, "imports in functions are seen"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_kernels_are_no_package() -> None:
    assert list((ROOT / "cuda").iterdir())
    assert not list((ROOT / "cuda").rglob("__init__.py"))
    assert not [path for path in MODULES if any(i.module.split(".")[0] == "cuda" for i in imports_of(path))]


def test_the_package_itself_imports_nothing_but_names() -> None:
    top = {i.module for i in imports_of(PACKAGE / "__init__.py") if i.top}
    assert top <= {"importlib", "typing"}


def test_no_public_name_is_also_a_module() -> None:
    """Python would bind such a module in the name's place as soon as it is imported."""
    lazy = [path for path in MODULES if path.name == "__init__.py" and "_HOMES" in path.read_text("utf-8")]
    assert len(lazy) > 2
    for path in lazy:
        public = vars(importlib.import_module(name_of(path)))["_HOMES"]
        beside = {one.stem for one in path.parent.iterdir()}
        assert not beside & set(public)


# ---- the command line starts quickly ----

COMMANDS = {name_of(path): path for path in MODULES if name_of(path).startswith("xreg.cli")}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_heavy_import_at_the_top_of_a_command(name: str) -> None:
    wrong = [
        f"line {found.line}: {found.module}"
        for found in imports_of(COMMANDS[name])
        if found.top and (found.module.split(".")[0] in HEAVY or rooms_of(found) - {"cli", "errors"})
    ]
    assert not wrong, "import it inside the verb"


def test_what_every_command_loads_is_click_and_the_standard_library() -> None:
    """Modules that speak to click, and all that they import at their top."""
    pending = [
        name for name, path in COMMANDS.items() if any(i.module == "click" for i in imports_of(path) if i.top)
    ]
    seen: set[str] = set()
    wrong = []
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for found in (i for i in imports_of(COMMANDS[name]) if i.top):
            root = found.module.split(".")[0]
            if root == "xreg":
                inner = [found.module, *(f"{found.module}.{n}" for n in found.names)]
                pending += [m for m in inner if m in COMMANDS]
            elif root not in sys.stdlib_module_names and root != "click":
                wrong.append(f"{name} line {found.line}: {found.module}")
    assert not wrong


# ---- how library code behaves ----

LIBRARY = [path for path in MODULES if not name_of(path).startswith("xreg.cli")]
GLOBAL_STATE = {
    "torch.manual_seed", "torch.seed", "torch.set_num_threads", "torch.set_default_dtype",
    "torch.set_default_device", "torch.use_deterministic_algorithms", "np.random.seed", "numpy.random.seed",
    "random.seed",
}  # fmt: skip


def calls_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_code_leaves_the_process_alone(path: Path) -> None:
    wrong = [f"line {n}: {f}" for f, n in calls_of(path) if f in GLOBAL_STATE | {"print", "exit", "sys.exit"}]
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_bad_input_meets_no_bare_assert(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_unpickled(path: Path) -> None:
    modules = {i.module.split(".")[0] for i in imports_of(path)}
    assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    assert "torch.load" not in {f for f, _ in calls_of(path)}
