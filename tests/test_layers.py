"""The rules of the house that a machine can check: layers, cycles, weight of the command line, documentation."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sengi"
FILES = sorted(SOURCE.rglob("*.py"))
# From top to bottom (docs/decisions/006-layers.md): a unit imports from lower lines only, never from its own line
LAYERS = [
    {"__main__"},
    {"cli"},
    {"report"},
    {"study"},
    {"train"},
    {"evaluate"},
    {"harness", "mt_bench"},
    {"inference"},
    {"model"},
    {"data", "world"},
    {"masks"},
    {"presets"},
    {"recipe_sources"},
    {"recipe", "storage", "environment", "evaluation", "statistics", "collective", "conversation"},
    {"cache", "disk", "recipe_parts"},
    {"errors"},
]
RANK = {unit: number for number, units in enumerate(LAYERS) for unit in units}


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Modules of ours that a statement imports; ``from sengi.a import b`` may mean the module ``sengi.a.b``."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        assert node.level == 0, "relative imports hide the layer"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        found = name if name in MODULES else name.rpartition(".")[0]
        if found in MODULES:
            yield found


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import in a file, those inside functions and for types alone, too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node):
                yield name, node.lineno


def unit_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_unit_has_its_layer() -> None:
    units = {unit_of(module) for module in MODULES} - {""}
    assert units <= RANK.keys(), f"give {units - RANK.keys()} a place in LAYERS and in the decision record"


def test_folders_are_one_deep() -> None:
    assert {len(path.relative_to(SOURCE).parts) for path in FILES} <= {1, 2}


def test_imports_point_downwards() -> None:
    for module, path in MODULES.items():
        unit = unit_of(module)
        for name, line in imports(path):
            other = unit_of(name)
            assert other in ("", unit) or RANK[unit] < RANK[other], f"{module}:{line}: {unit} imports {name}"


def test_there_is_no_cycle() -> None:
    graph = {module: {name for name, _ in imports(path)} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*above, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("sengi", "torch transformers pydantic numpy yaml cyclopts"),
        ("sengi.cli.app", "torch transformers pydantic numpy pyarrow scipy numba bokeh matplotlib"),
        ("sengi.data.plan", "torch transformers"),
        ("sengi.recipe_sources", "torch transformers numpy"),
        ("sengi.report.write", "torch transformers"),
    ],
)
def test_light_modules_stay_light(module: str, unwanted: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {unwanted.split()} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def public(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods of public classes."""

    def look(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from look(node.body, f"{node.name}.")

    yield from look(tree(path).body, "")  # type: ignore[misc]


def test_what_is_public_is_documented() -> None:
    for module, path in MODULES.items():
        empty = not path.stat().st_size
        assert empty or ast.get_docstring(tree(path)), f"{module}: a module begins with what it is for"
        for name, node in public(path):
            assert ast.get_docstring(node), f"{module}:{node.lineno}: {name} has no docstring"


def test_what_is_public_is_annotated() -> None:
    for place, node in nodes():
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_compiled(node):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{place}: {node.name} does not annotate {bare}"
        assert node.returns is not None or node.name == "__init__", f"{place}: {node.name} does not say what it returns"


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """(module:line, node) of everything in all files."""
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            yield f"{module}:{getattr(node, 'lineno', 0)}", node


def _is_compiled(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("njit" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_nothing_dangerous_and_nothing_swallowed() -> None:
    for place, node in nodes():
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{place}: a bare except hides every mistake"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "marshal", "shelve", "dill"} & set(names), f"{place}: runs code from files"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "os.system"), f"{place}: {called}"
            assert not called.endswith(".extractall"), f"{place}: writes outside its folder"
            for keyword in node.keywords:
                risky = {"shell": "True", "allow_pickle": "True"}.get(keyword.arg or "")
                assert ast.unparse(keyword.value) != risky, f"{place}: {keyword.arg}={risky}"
            if called == "yaml.load":
                loaders = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "Loader"]
                assert loaders == ["_Loader"], f"{place}: only the safe loader of recipe_sources"


def test_files_stay_readable() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    # 150 lines usual, 300 rarely passed, 400 never
    assert {module: length for module, length in lengths.items() if length > 400} == {}
