"""Tests the rules of docs/architecture.md on which file may import or name what."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "selfloop_jax"
FILES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
# Each floor imports from itself and from those below it.
FLOORS = (
    *(
        "errors",
        "runtime",
        "config",
        "data",
        "models",
        "diffusion",
        "training",
        "sampling",
        "curate",
    ),
    *("measure", "analysis", "report", "loop", "studies", "main"),
)
PROGRAMS = ("main", "sweep", "export", "cli", "__init__")  # the top floor
# These files must start within a second on a login node without an accelerator.
WITHOUT_JAX = ("errors", "config", "analysis", "report", "sweep", "__init__", "cli", "export")
WITHOUT_JAX_FILES = ("runtime/rng.py", "runtime/store.py", "runtime/workdir.py", "runtime/cli.py")
MEASURES_WITH_JAX = tuple(
    f"measure/{name}.py"
    for name in (
        *("distances", "fidelity", "memorization", "features", "pretrained", "foreground"),
        *("read_images", "__main__"),
    )
)


@cache
def imports(text: str) -> frozenset[str]:
    """Dotted names of all modules that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


@cache
def importers(package: str) -> set[str]:
    return {
        name
        for name, text in FILES.items()
        if any(module == package or module.startswith(f"{package}.") for module in imports(text))
    }


@cache
def own(name: str) -> set[str]:
    """Returns the package's files that a file imports, without parent packages of modules."""
    found = set()
    for module in imports(FILES[name]):
        path = module.removeprefix("selfloop_jax.").replace(".", "/")
        candidates = (f"{path}.py", f"{path}/__init__.py")
        found |= {
            file for file in candidates if module.startswith("selfloop_jax.") and file in FILES
        }
    packages = {file for file in found if file.endswith("__init__.py")}
    inner = {
        p
        for p in packages
        if any(f != p and f.startswith(p.removesuffix("__init__.py")) for f in found)
    }
    return found - inner


@cache
def reach(name: str) -> set[str]:
    """A file and all that it imports, directly or not."""
    seen, waiting = set(), [name]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += own(file)
    return seen


def floor(name: str) -> int:
    """The place of a file's folder, or of a file at the top, in FLOORS."""
    place = name.removesuffix(".py").partition("/")[0]
    # `python -m selfloop_jax.sampling` is a program like `main`, in a lower folder.
    is_program = place in PROGRAMS or name.endswith("/__main__.py")
    return FLOORS.index("main" if is_program else place)


def test_only_parallel_names_pmap():
    assert {name for name, text in FILES.items() if "pmap" in text} == {"runtime/parallel.py"}


def test_only_checkpoints_imports_orbax():
    assert importers("orbax") == {"training/checkpoints.py"}


def test_only_sources_import_tensorflow_datasets():
    assert all(name.startswith("data/sources/") for name in importers("tensorflow_datasets"))


def test_nothing_imports_tensorflow():
    assert importers("tensorflow") == set()


def test_flags_only_in_the_command_line_of_a_run():
    assert importers("absl") <= {"main.py", "config/command_line.py"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_floor_imports_lower_ones_only(name):
    upwards = {other for other in own(name) if floor(other) > floor(name)}
    assert not upwards


def without_jax() -> list[str]:
    return sorted(
        name
        for name in FILES
        if name in WITHOUT_JAX_FILES
        or name.removesuffix(".py").partition("/")[0] in WITHOUT_JAX
        or (name.startswith("measure/") and name not in MEASURES_WITH_JAX)
    )


@pytest.mark.parametrize("name", without_jax())
def test_a_run_can_be_read_without_jax(name):
    heavy = set().union(*(importers(package) for package in ("jax", "flax", "optax", "orbax")))
    assert reach(name) & heavy == set()


def test_no_cycles():
    for name in FILES:
        assert name not in set().union(*(reach(other) for other in own(name) - {name})), name
