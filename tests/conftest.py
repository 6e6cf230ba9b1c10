"""Four CPU devices, kept compiled programs, no silent broadcasting or promotion; a finished run."""

import fcntl
import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
import runs

from selfloop_jax.runtime import environment
from selfloop_jax.sampling import sampler
from selfloop_jax.training import classifier, generator

# Of all programs, those of tests run least: LLVM's later passes take longer than they save.
# Processes that tests start inherit the flag.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=1"
environment.configure(nproc=2, cpu_devices=4, deterministic=True)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def kept(make: Callable) -> Callable:
    """The same function, which returns what it returned before for equal arguments."""
    kept = functools.cache(make)

    @functools.wraps(make)
    def call(*arguments, **named):
        try:
            return kept(*arguments, **named)
        except TypeError:  # arguments that cannot be compared
            return make(*arguments, **named)

    return call


# Runs in this process share their traced programs: half of a short run's time goes to tracing.
for owner, name in (
    (generator, "make_trainer"),
    (classifier, "make_trainer"),
    (classifier, "make_predict"),
    (sampler, "make_sampler"),
):
    setattr(owner, name, kept(getattr(owner, name)))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished shrunk quickstart of three generations; a test that changes it works on a copy.

    It is made once, in a process of its own; of several test processes the first one makes it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all test processes
    workdir = folder / "finished" / "run"
    workdir.parent.mkdir(exist_ok=True)
    with open(workdir.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not workdir.exists():
            done = runs.run(workdir, "--config.report.enabled=True")
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == f"report: {workdir / 'report.html'}"
    return workdir
