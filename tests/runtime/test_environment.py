"""What decides bits besides the config: JAX's switches, compilations, the state of the code."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import runs

from selfloop_jax.runtime import environment


def program(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Python code in a process of its own: JAX reads its variables on import."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JAX_THREEFRY_PARTITIONABLE", "0"),
        ("JAX_ENABLE_X64", "1"),
        ("JAX_RANDOM_SEED_OFFSET", "3"),
        ("JAX_DEFAULT_MATMUL_PRECISION", "bfloat16"),
        ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
    ],
)
def test_a_switch_that_the_environment_sets_is_refused_in_one_line(variable, value):
    done = runs.main(runs.CONFIG, "--dry_run", environment={variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {variable} = {value}: must be unset, because the program itself fixes every "
        "switch that decides bits\n"
    )


def test_switches_have_the_values_that_jax_gives_them():
    """In a process without the variables: fixing them changes no bits."""
    code = (
        "import jax; from selfloop_jax.runtime.environment import SWITCHES; v = jax.config.values;"
        "print({n: v[n] for n in SWITCHES if n in v and v[n] != SWITCHES[n]})"
    )
    done = program(code)
    assert (done.returncode, done.stdout.strip()) == (0, "{}"), done.stderr


def test_a_variable_may_set_the_usual_value_and_all_else_is_overruled():
    code = (
        "import jax; jax.config.update('jax_threefry_partitionable', False);"
        "from selfloop_jax.runtime import environment; environment.configure(2, 4, True);"
        "print(jax.config.jax_enable_x64, jax.config.jax_threefry_partitionable)"
    )
    done = program(code, JAX_ENABLE_X64="false", JAX_RANDOM_SEED_OFFSET="0")
    assert (done.returncode, done.stdout.strip()) == (0, "False True"), done.stderr


def test_compilations_are_counted_from_each_call_on_by_one_listener(monkeypatch):
    first = environment.count_compilations()
    listeners = []
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", listeners.append)
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(3)).block_until_ready()
    second = environment.count_compilations()
    before = first()
    assert before > 0
    assert second() == 0
    jax.jit(lambda x: x * 5 + 1)(jnp.ones(3)).block_until_ready()
    assert second() > 0
    assert first() == before + second()
    assert listeners == []


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_of_no_repository_around_it(tmp_path, monkeypatch):
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "one")
    file = "selfloop_jax/runtime/environment.py"
    monkeypatch.setattr(environment, "__file__", str(tmp_path / file))
    assert environment.git_state() == git(tmp_path, "rev-parse", "HEAD")
    installed = tmp_path / ".venv/lib/python3.11/site-packages"
    (installed / file).parent.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(installed / file))
    assert environment.git_state() == ""
