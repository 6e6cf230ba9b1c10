"""Four CPU devices, kept compiled programs, no silent broadcasting or promotion; a finished run."""

import fcntl
import functools
import os
import signal
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


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A run for all tests, made once: of several test processes the first one makes it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all test processes
    workdir = folder / name / "run"
    workdir.parent.mkdir(exist_ok=True)
    with open(workdir.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir.parent / "made").exists():
            make(workdir)
            (workdir.parent / "made").touch()
    return workdir


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished shrunk quickstart of three generations; a test that changes it works on a copy."""

    def make(workdir: Path) -> None:
        done = runs.run(workdir, "--config.report.enabled=True")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"report: {workdir / 'report.html'}"

    return shared(tmp_path_factory, "finished", make)


@pytest.fixture(scope="session")
def made_by_two(tmp_path_factory) -> Path:
    """A run of two processes, of which one was stopped or killed three times in generation 0.

    Its replay in one go shows that the bits are those of a run that nobody stopped.
    """

    def make(workdir: Path) -> None:
        codes, said = runs.interrupt_two(
            workdir, "gen_0000/pool.json", 1, signal.SIGTERM, frozen=10
        )
        assert codes == [143, 143], said
        assert "stopped at generation 0" in said[0]
        # A killed process prints nothing. The other one must end too, with an error code.
        for moment, killed in (("gen_0000/diffusion/16", 1), ("gen_0000/sample.json", 0)):
            codes, said = runs.interrupt_two(workdir, moment, killed, signal.SIGKILL)
            assert codes[killed] == -signal.SIGKILL
            assert codes[1 - killed] not in (0, 143)
            # It says so, be it in a program, saving a checkpoint, or between both.
            ended = said[1 - killed]
            assert "another task died" in ended or "error: " in ended
        codes, said = runs.end_all(runs.start_two(workdir))
        assert codes == [0, 0], said
        assert "generation 1 done" in said[0]
        assert said[1] == ""  # only process 0 logs

    return shared(tmp_path_factory, "made_by_two", make)
