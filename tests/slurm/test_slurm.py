"""Tests launch/slurm.sh on a real SLURM: a stop, a requeue, a killed task, equal bits."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import runs

MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0, reason="needs root, slurm-wlm and munge"
)
SECONDS = 600.0  # that a job may take


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Path]:
    """A SLURM of one node, for as long as the test takes."""
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        pytest.skip("tasks find each other by the machine's name, which has no address here")
    folder = tmp_path / "cluster"
    script = Path(__file__).with_name("cluster.sh")
    with subprocess.Popen(
        ["bash", script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            if started.stdout.readline() != "ready\n":
                pytest.skip("SLURM does not start on this machine")
            monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            monkeypatch.setenv("VENV", sys.prefix)
            yield folder
        finally:
            started.terminate()


def ask(*command: str) -> str:
    return subprocess.run(
        command, cwd=runs.ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def submit(workdir: Path, log: Path) -> str:
    """Submits two tasks without GPUs; returns the number of the job."""
    options = ["--parsable", "--gpus-per-task=0", "--ntasks-per-node=2", "--cpus-per-task=1"]
    arguments = runs.command(workdir, *runs.TWO, "--config.loop.generations=1")[3:]
    return ask("sbatch", *options, f"--output={log}", "launch/slurm.sh", *arguments)


def wait(condition: Callable[[], object], log: Path) -> None:
    """Waits for the condition; fails with the job's log where it takes too long."""
    for _ in range(int(SECONDS / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text() if log.exists() else "the job never started")


def fact(job: str, name: str) -> str:
    """One of the facts that SLURM keeps of a job, such as its state."""
    facts = (part.partition("=") for part in ask("scontrol", "show", "job", job).split())
    return {key: value for key, _, value in facts}[name]


def task(job: str, rank: int) -> int:
    """The process id of a task of the job, found by its environment."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"SLURM_STEP_ID=0"}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"selfloop_jax.main" in (folder / "cmdline").read_bytes() and wanted <= {
                *(folder / "environ").read_bytes().split(b"\0")
            }:
                return int(folder.name)
    raise AssertionError(f"no task {rank} of job {job}")


def digests(workdir: Path) -> list[dict]:
    records = sorted(workdir.glob("gen_*/record.json"))
    return [json.loads(path.read_text())["digests"] for path in records]


def test_a_stopped_requeued_and_killed_job_makes_the_bits_of_two_processes(
    cluster, made_by_two, tmp_path
):
    workdir, log = tmp_path / "run", tmp_path / "job.log"
    job = submit(workdir, log)
    wait((workdir / "gen_0000" / "pool.json").exists, log)
    # What SLURM itself sends before the time limit, by `--signal` in the script.
    ask("scancel", "--signal=TERM", job)
    # Queued again by the script, it starts again by itself and resumes.
    wait(lambda: fact(job, "Restarts") == "1", log)
    wait((workdir / "gen_0000" / "sample.json").exists, log)
    os.kill(task(job, 1), signal.SIGKILL)
    wait(lambda: fact(job, "JobState") == "FAILED", log)
    said = log.read_text()
    assert "stopped at generation 0" in said
    assert "progress is saved; the job is queued again" in said
    assert "the same command resumes" in said
    assert digests(workdir) == []

    again = submit(workdir, log)
    wait(lambda: fact(again, "JobState") in ("COMPLETED", "FAILED"), log)
    assert fact(again, "JobState") == "COMPLETED", log.read_text()
    assert digests(workdir) == digests(made_by_two)[:1]
