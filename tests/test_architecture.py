"""What every file of the project keeps to: layers, `jit` in one place, lengths, documentation."""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "polar_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = sorted([*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py")])
# The engine by layer (docs/architecture.md); what is not named belongs to the command.
LAYERS = {
    0: ("types", "checks", "processors"),
    1: ("linalg", "draws", "epochs", "cache_value", "capacity"),
    2: (
        *("cache_search", "sized_search", "set_moves", "relaxed_search"),
        *("environments", "paging", "problems"),
        *("replays", "replay_streams"),
    ),
    3: (
        *("routers", "controllers", "eviction", "experts", "online_submodular"),
        *("replanning", "oracles", "metrics"),
    ),
    4: ("policies",),
    5: ("simulate", "kernels"),
    6: (
        "chunks",
        "lane_calls",
        "lane_maps",
        "lanes",
        "processes",
        "program_names",
        "programs",
        "results",
        "snapshots",
    ),
    8: (
        "cli",
        "bench_cli",
        "log_cli",
        "paging_cli",
        "replay_cli",
        "sweep_cli",
        "cluster_cli",
        "terminal",
        "__main__",
    ),
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
COMMAND_LAYER, ENGINE_LAYER = 7, 6
ENGINE_PACKAGES = {"jax", "flax", "optax", "chex", "numpy", "polar_jax"}
MAX_FILE, MAX_FUNCTION = 400, 60


def named(path: pathlib.Path) -> str:
    """A file's path within the project, as test names show it."""
    return path.relative_to(ROOT).as_posix()


def layer_of(path: pathlib.Path) -> int:
    """The layer of a module's file."""
    inside = path.parent == PACKAGE
    return LAYER.get(path.stem if inside else path.parent.name, COMMAND_LAYER)


def parsed(path: pathlib.Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that a tree imports anywhere, by their first name in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "polar_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polar_jax."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            found = (alias.name.split(".") for alias in node.names)
            yield from (name[1] for name in found if name[0] == "polar_jax" and len(name) > 1)


def imported_packages(tree: ast.AST) -> set[str]:
    """Top-level packages that a tree imports anywhere."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


def layer_errors(tree: ast.AST, layer: int) -> list[str]:
    """Imports of modules from a higher layer."""
    return [name for name in imported_modules(tree) if LAYER.get(name, COMMAND_LAYER) > layer]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a tree, methods and nested ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods without a docstring."""
    pending: list[ast.stmt] = list(tree.body)
    missing = []
    while pending:
        node = pending.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            pending += node.body
    return missing


@pytest.mark.parametrize("path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=named)
def test_modules_import_from_their_own_layer_and_those_below(path):
    assert layer_errors(parsed(path), layer_of(path)) == []


def test_every_named_layer_is_a_module_and_imports_go_round_nowhere():
    stems = {path.stem for path in MODULES if path.parent == PACKAGE}
    packages = {path.parent.name for path in MODULES if path.parent != PACKAGE}
    assert set(LAYER) - {"__main__"} <= stems | packages
    below = {
        path.stem: set(imported_modules(parsed(path)))
        for path in MODULES
        if path.parent == PACKAGE and layer_of(path) <= ENGINE_LAYER and path.stem in LAYER
    }
    while below:
        free = {name for name, needs in below.items() if not needs & set(below)}
        assert free, f"imports go round among {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in free}


@pytest.mark.parametrize("path", [p for p in MODULES if layer_of(p) <= ENGINE_LAYER], ids=named)
def test_the_engine_needs_only_its_own_packages(path):
    others = imported_packages(parsed(path)) - ENGINE_PACKAGES
    assert others <= set(sys.stdlib_module_names)


def test_compilation_and_devices_are_decided_in_two_modules():
    words = ("jax.jit", "jax.pmap", "shard_map", "jax.sharding", "donate_arg")
    using = {path.stem for path in MODULES for word in words if word in path.read_text("utf-8")}
    assert using == {"programs", "lane_maps"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_and_functions_stay_short(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= MAX_FILE
    for node in functions(parsed(path)):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        assert length <= MAX_FUNCTION, node.name


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_every_public_name_is_documented(path):
    tree = parsed(path)
    assert ast.get_docstring(tree) is not None
    assert undocumented(tree) == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_checks_are_not_switched_off(path):
    marks = ("# no" + "qa", "type: " + "ignore", "pyright: " + "ignore")
    text = path.read_text(encoding="utf-8")
    assert [mark for mark in marks if mark in text] == []


def test_the_package_uses_no_bare_assert():
    # `python -O` drops them: users' errors are ValueErrors, developers' are chex assertions.
    for path in MODULES:
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(parsed(path)))


def test_the_checks_above_can_fail():
    wrong = ast.parse("from polar_jax import lanes\nclass A:\n    def b(self): ...\n")
    assert layer_errors(wrong, LAYER["routers"]) == ["lanes"]
    assert sorted(undocumented(wrong)) == ["A", "b"]
    assert imported_packages(ast.parse("import rich.table")) == {"rich"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import polar_jax", ("jax", "pyarrow", "matplotlib", "rich", "tyro")),
        # The classes of flax, which the states are made of, load rich themselves.
        ("from polar_jax import lanes", ("pyarrow", "matplotlib", "tyro")),
    ],
)
def test_an_import_loads_only_what_it_needs(statement, absent):
    program = f"import sys\n{statement}\nprint(*[n for n in {absent} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == ""
