"""The house rules that a tool can check: layers, import order, sizes."""

import ast
import re
from pathlib import Path

import pipeline

ROOT = Path(pipeline.__file__).parents[1]
PACKAGES = ("pipeline", "apps", "site_configs")
LONGEST_FILE, LONGEST_FUNCTION = 350, 60


def sources():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Modules imported at top level or inside functions; names from a package count as its submodules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_pipeline_never_imports_the_engine_or_the_apps():
    for path in (ROOT / "pipeline").rglob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & {"parsl", "apps", "site_configs"}, path


def test_site_configs_never_import_apps():
    for path in (ROOT / "site_configs").rglob("*.py"):
        assert "apps" not in {name.split(".")[0] for name in imports(path)}, path


def test_no_import_circles():
    names = {module_name(path): path for path in sources()}
    graph = {name: {m for m in imports(path) if m in names and m != name} for name, path in names.items()}
    done, active = set(), []

    def visit(name):
        assert name not in active, " -> ".join([*active, name])
        if name in done:
            return
        active.append(name)
        for other in sorted(graph[name]):
            # a package's own __init__ gathers its modules
            if not name.startswith(f"{other}."):
                visit(other)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_modules_import_only_from_above_themselves_in_the_map():
    assert pipeline.__doc__ is not None
    table = pipeline.__doc__.split("=====\n")[1]
    order = [name for row in table.splitlines() for name in re.findall(r"``(\w+)``", row[:40])]
    found = {
        p.stem if p.is_file() else p.name for p in (ROOT / "pipeline").iterdir() if p.suffix == ".py" or p.is_dir()
    }
    found -= {"__init__", "__pycache__"}
    assert set(order) == found, "the map in pipeline/__init__.py and the files differ"
    for path in (ROOT / "pipeline").rglob("*.py"):
        own = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "pipeline" and len(parts) > 1 and parts[1] in order:
                assert order.index(parts[1]) <= order.index(own), f"{path.name} imports {name} from below itself"


def test_files_and_functions_stay_short():
    for path in sources():
        text = path.read_text()
        assert text.count("\n") <= LONGEST_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = ast.get_docstring(node, clean=False) or ""
                length = (node.end_lineno or 0) - node.lineno + 1 - doc.count("\n")
                assert length <= LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_every_public_function_and_class_has_a_docstring():
    for path in sources():
        tree = ast.parse(path.read_text())
        assert path.name == "__init__.py" or ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"
