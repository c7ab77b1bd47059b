"""Who may import whom, and what an import costs."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "models": {"models"},
    "objectives": {"objectives", "models"},
    "data": {"data"},
    "metrics": {"metrics"},
    "train": {"train"},
    "generate": {"generate", "models", "data"},
    "weights": {"weights", "models", "data"},
}
FOR_ALL = {"errors"}


def imports(path):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room):
    allowed = MAY_IMPORT[room] | FOR_ALL
    for path in (ROOT / "zoo" / room).rglob("*.py"):
        for module in imports(path):
            parts = module.split(".")
            if parts[0] in ("zoo", "experiments", "tests", "tpu"):
                assert parts[:1] == ["zoo"], f"{path.relative_to(ROOT)} imports {module}"
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_nothing_imports_the_front():
    for path in (ROOT / "zoo").rglob("*.py"):
        for module in imports(path):
            assert not module.startswith(("experiments", "zoo.cli", "tests")), f"{path} imports {module}"


def modules_after(statement):
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy():
    assert not modules_after("import zoo") & {"jax", "flax", "numpy", "PIL", "matplotlib", "tyro"}


def test_a_model_needs_only_jax_and_flax():
    found = modules_after("import zoo.models.decoder, zoo.models.cnn")
    assert not found & {"grain", "sklearn", "PIL", "matplotlib", "tyro", "safetensors", "tensorflow_datasets"}


def test_files_are_small_enough_to_read():
    for folder, most in (("zoo", 500), ("experiments", 250)):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= most, path


def test_the_engine_stays_small():
    """Lines of code of zoo/train: without blank lines, comments and docstrings."""
    total = 0
    for path in (ROOT / "zoo" / "train").glob("*.py"):
        text = path.read_text()
        lines = {i for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                lines -= set(range(node.lineno, node.end_lineno + 1))
        total += len(lines)
    assert total <= 900
