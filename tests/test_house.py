"""Who may import and name what: the rules of docs/design.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "selfloop_jax"
FILES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}


def imports(text: str) -> set[str]:
    """Dotted names of all modules that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def importers(package: str) -> set[str]:
    return {
        name
        for name, text in FILES.items()
        if any(module == package or module.startswith(f"{package}.") for module in imports(text))
    }


def own(name: str) -> set[str]:
    """Files of the package that a file imports; of `from package import module` the module alone."""
    found = set()
    for module in imports(FILES[name]):
        path = module.removeprefix("selfloop_jax.").replace(".", "/")
        candidates = (f"{path}.py", f"{path}/__init__.py")
        found |= {file for file in candidates if module.startswith("selfloop_jax.") and file in FILES}
    packages = {file for file in found if file.endswith("__init__.py")}
    inner = {
        p for p in packages if any(f != p and f.startswith(p.removesuffix("__init__.py")) for f in found)
    }
    return found - inner


def reach(name: str) -> set[str]:
    """A file and all that it imports, directly or not."""
    seen, waiting = set(), [name]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += own(file)
    return seen


def test_only_parallel_names_pmap():
    assert {name for name, text in FILES.items() if "pmap" in text} == {"parallel.py"}


def test_only_train_imports_orbax():
    assert importers("orbax") == {"train.py"}


def test_only_data_imports_tensorflow_datasets():
    assert all(name.startswith("data/") for name in importers("tensorflow_datasets"))


def test_nothing_imports_tensorflow():
    assert importers("tensorflow") == set()


@pytest.mark.parametrize(
    "name",
    [
        *("store.py", "measure/fairness.py", "measure/drift.py", "measure/verdict.py", "measure/dynamics.py"),
        *("measure/uncertainty.py", "measure/intervals.py"),
        *("report/__init__.py", "report/__main__.py", "sweep.py"),
    ],
)
def test_a_run_can_be_read_without_jax(name):
    heavy = importers("jax") | importers("flax") | importers("optax") | importers("orbax")
    assert reach(name) & heavy == set()


def test_flags_only_in_main():
    assert importers("absl") == {"main.py"}


def test_no_cycles():
    for name in FILES:
        assert name not in set().union(*(reach(other) for other in own(name) - {name})), name


def test_measures_and_models_know_nothing_of_training():
    for name in FILES:
        if name.startswith(("measure/", "models/", "diffusion.py")):
            assert not reach(name) & {"train.py", "loop.py", "phases.py", "store.py"}, name
