"""The house rules: arrows run one way, nothing heavy is imported, files stay short, shipped recipes pass the check."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("organisms", "train", "audit", "recipes", "bench")
ALLOWED = {
    "organisms": set(),
    "train": {"organisms"},
    "audit": {"organisms"},
    "recipes": {"organisms", "train", "audit"},
    "bench": {"organisms", "train", "audit", "recipes"},
}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path, top_level_only: bool) -> set[str]:
    """Dotted names of project modules that a file imports; `top_level_only` leaves out imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if not top_level_only else [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    packages = {name.split(".")[0] for name in imported(path, top_level_only=False)} - {package}
    assert packages <= ALLOWED[package]


def test_no_circle_of_imports():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {name: imported(path, top_level_only=True) & modules.keys() - {name} for name, path in modules.items()}
    # A name imported from a package is the package's own where no module has it.
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", FILES + sorted((ROOT / "tests").glob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_only_train_imports_trl():
    """And bench, which runs TRL as it is beside train."""
    users = {path.relative_to(ROOT).parts[0] for path in FILES if "trl" in _all_imports(path)}
    assert users == {"train", "bench"}


def _all_imports(path: Path) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.Import, ast.ImportFrom))]
    found = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_importing_the_packages_loads_nothing_heavy():
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in FILES]
    modules = [name for name in modules if not name.endswith("__main__")]
    heavy = ["torch", "transformers", "trl", "peft", "vllm", "wandb", "datasets", "matplotlib"]
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_install_names_every_package():
    import tomllib

    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert declared == {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in FILES}


def test_no_text_points_to_a_file_that_is_not_there():
    """Docstrings and guides once sent readers to plans that had never been part of the repository."""
    guides = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    names, texts = {path.name for path in guides}, [*FILES, *guides, *(ROOT / "tests").glob("*.py")]
    dead = {str(path.relative_to(ROOT)): re.findall(r"\b[A-Z_]{4,}\.md\b", path.read_text(encoding="utf-8")) for path in texts}
    assert {path: found for path, named in dead.items() if (found := set(named) - names)} == {}
