"""What decides bits besides the config: JAX's switches, compilations, the state of the code."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import runs

from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import environment, workdir


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


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JAX_ENABLE_X64", "maybe"),
        ("JAX_RANDOM_SEED_OFFSET", "x"),
        ("JAX_NUM_CPU_DEVICES", "two"),
        ("JAX_LOGGING_LEVEL", "loud"),
    ],
)
def test_a_variable_that_jax_cannot_read_is_refused_in_one_line(variable, value):
    done = runs.main(runs.CONFIG, "--dry_run", environment={variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {variable} = {value}: must be a value that JAX takes: ")


def test_other_programs_refuse_such_a_variable_too():
    command = [sys.executable, "-m", "selfloop_jax.measure", "fidelity", "a", "--real=b"]
    variables = {**os.environ, "JAX_ENABLE_X64": "maybe"}
    done = subprocess.run(command, cwd=runs.ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX_ENABLE_X64 = maybe: must be a value that JAX takes: ")


def test_variables_below_jax_are_in_the_manifest(monkeypatch):
    assert "variables" not in environment.manifest(None)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    manifest = environment.manifest(None)
    assert manifest["variables"] == {"NVIDIA_TF32_OVERRIDE": "0"}
    del manifest["variables"]
    changed = workdir.manifest_difference(manifest, environment.manifest(None))
    assert changed == "variables.NVIDIA_TF32_OVERRIDE"


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


def test_another_size_of_the_thread_pool_is_refused():
    done = runs.main(runs.CONFIG, "--dry_run", environment={"PJRT_NPROC": "7"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: PJRT_NPROC = 7: must be unset, because parallel.nproc = 2 decides\n"
    )


@pytest.mark.parametrize("platforms", ["tpu,cpu", "cuda", "nonsense"])
def test_a_platform_that_does_not_start_is_one_line(platforms, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    done = runs.main(runs.CONFIG, workdir, environment={"JAX_PLATFORMS": platforms})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: JAX_PLATFORMS = {platforms}: does not start: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "package", "expected"),
    [
        ("nvidia0", "jax_cuda12_plugin", "gpu"),
        ("nvidia0", "jax_cuda13_plugin", "gpu"),
        ("accel3", "libtpu", "tpu"),
        ("vfio/0", "libtpu", "tpu"),
        ("nvidia0", "libtpu", "cpu"),  # JAX has nothing for this device
        ("nvidiactl", "jax_cuda12_plugin", "cpu"),  # a driver, and no device
        ("null", "jax_cuda12_plugin", "cpu"),
    ],
)
def test_the_cpu_is_not_taken_in_place_of_an_accelerator_without_a_word(
    device, package, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(environment, "DEV", tmp_path)
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == package or None)
    assert environment.expected_platform() == expected
    if expected == "cpu":
        environment.start_backend()
        return
    with pytest.raises(UsageError, match=r"^JAX_PLATFORMS is unset: must be cpu to run on the CPU"):
        environment.start_backend()


def test_a_platform_whose_package_is_missing_is_one_line(tmp_path):
    """JAX passes over it without an error, to the next one named."""
    workdir = f"--workdir={tmp_path / 'run'}"
    done = runs.main(runs.CONFIG, workdir, environment={"JAX_PLATFORMS": "cuda,cpu"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX_PLATFORMS = cuda,cpu: must be cpu to run on the CPU")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("cuda,cpu", "gpu"), ("tpu", "tpu"), ("cpu", "cpu"), ("rocm", "gpu")],
)
def test_the_platform_is_the_one_asked_for(asked, expected):
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", asked)
    try:
        assert environment.expected_platform() == expected
    finally:
        jax.config.update("jax_platforms", before)


def test_the_precision_of_products_is_that_of_the_config():
    code = (
        "import jax; from selfloop_jax.runtime import environment;"
        "environment.configure(2, 1, True, matmul_precision='highest');"
        "print(jax.jit(lambda x: x @ x).lower(jax.numpy.ones((2, 2))).as_text())"
    )
    assert "precision = [HIGHEST, HIGHEST]" in program(code).stdout


def test_versions_of_a_gpu_are_recorded(monkeypatch, tmp_path):
    assert environment.accelerator() == {}
    client = SimpleNamespace(platform_version="PJRT C API\ncuda 12090")
    device = SimpleNamespace(platform="gpu", client=client)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04\nGCC version:\n")
    monkeypatch.setattr(environment, "NVIDIA_DRIVER", driver)
    packages = [
        SimpleNamespace(metadata={"Name": name}, version=version)
        for name, version in (("nvidia-cudnn-cu12", "9.19"), ("numpy", "2.0"))
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: packages)
    assert environment.accelerator() == {
        "driver": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04",
        "nvidia-cudnn-cu12": "9.19",
        "runtime": "PJRT C API cuda 12090",
    }


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
