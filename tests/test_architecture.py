"""The order of the folders: a module imports only from those above it, and running a network needs numpy alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import blockpunch

ROOT = Path(blockpunch.__file__).parent

ORDER = ("errors", "data", "atomic", "target", "graph", "layers", "schemes", "plan", "pruning", "compiler", "manifest",
         "artifact", "runtime", "tuning", "build", "measure", "mapping", "report", "optimize", "cli", "__main__")
"""From the ground up: each may import those to its left. ``import blockpunch`` itself counts as ``runtime``."""

NUMPY_ALONE = ("errors", "atomic", "target", "manifest", "artifact", "runtime")
"""What a session is made of: these import one another, the standard library and numpy when they are loaded."""


def part(module: str) -> str:
    """``blockpunch.graph.ir`` -> ``graph``."""
    words = module.split(".")
    return words[1] if len(words) > 1 else "runtime"


def module_name(path: Path) -> str:
    words = ["blockpunch", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, *, late: bool) -> Iterator[str]:
    """Modules that a file imports, but for types only; with ``late`` also those that it imports inside functions."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [alias.name for alias in node.names if node.module == "blockpunch" and alias.name in ORDER]
            yield from (f"blockpunch.{name}" for name in modules) if modules else [str(node.module)]
        elif is_type_checking(node) or (not late and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            continue
        waiting.extend(ast.iter_child_nodes(node))


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_every_module_has_its_place() -> None:
    assert {part(module_name(path)) for path in modules()} <= set(ORDER)


def test_imports_go_upwards_only() -> None:
    def rank(name: str) -> int:
        return ORDER.index(part(name))

    wrong = [f"{module_name(path)} imports {name}" for path in modules() for name in imports(path, late=True)
             if name.partition(".")[0] == "blockpunch" and rank(name) > rank(module_name(path))]
    assert not wrong


def test_what_running_needs() -> None:
    wrong = [f"{module_name(path)} imports {name}" for path in modules() if part(module_name(path)) in NUMPY_ALONE
             for name in imports(path, late=False)
             if (part(name) not in NUMPY_ALONE if name.startswith("blockpunch") else
                 name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"})]
    assert not wrong


def test_modules_can_be_read_in_one_sitting() -> None:
    assert not [f"{module_name(path)}: {lines} lines" for path in modules()
                if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500]


def test_running_needs_numpy_alone(tmp_path: Path) -> None:
    """In an interpreter that has nothing else, a network is loaded and run."""
    sys.path.insert(0, str(Path(__file__).parent / "runtime"))
    import tiny

    path = tiny.artifact().save(tmp_path / "tiny.bp")
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "blockpunch"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
import blockpunch, numpy
with blockpunch.Session(sys.argv[1], threads=2) as session:
    print(float(session.run(numpy.ones((3, 50), numpy.float32))[0].sum()))
print(sorted(name for name in sys.modules if name.startswith("blockpunch.")))
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total, loaded = done.stdout.splitlines()
    assert float(total) == 300 + float(tiny.WEIGHTS.sum())
    assert not {"compiler", "graph", "measure", "cli"} & {part(name) for name in ast.literal_eval(loaded)}


def test_public_names() -> None:
    assert sorted(blockpunch.__all__) == list(blockpunch.__all__) == dir(blockpunch)
    assert set(blockpunch._HOME) <= set(blockpunch.__all__)
    for name in blockpunch.__all__:
        assert getattr(blockpunch, name) is not None
    tree = (value for value in vars(blockpunch.errors).values() if isinstance(value, type))
    assert {error.__name__ for error in tree if issubclass(error, Exception)} <= set(blockpunch.__all__)
    assert not hasattr(blockpunch, "nothing_of_this_name")
    assert blockpunch.__version__[0].isdigit()


def test_types_are_told_of_every_public_name() -> None:
    """What ``__getattr__`` gives, type checkers see as imports."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if is_type_checking(node))
    imported = [node for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    named = {alias.name: node.module for node in imported for alias in node.names}
    assert set(named) == set(blockpunch.__all__) - {"__version__"}
    assert all(named[name] == f"blockpunch.{blockpunch._HOME.get(name, 'errors')}" for name in named)
