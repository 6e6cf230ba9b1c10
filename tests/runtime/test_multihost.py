"""Tests runs of two processes with two devices each: bits, signals, launch mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import runs

from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import multihost
from selfloop_jax.runtime.workdir import lock


def digests(workdir: Path) -> list[dict]:
    return [
        json.loads(path.read_text())["digests"]
        for path in sorted(workdir.glob("gen_*/record.json"))
    ]


def test_a_run_with_a_process_stopped_or_killed_replays_in_one_go_to_the_same_bits(
    made_by_two, tmp_path
):
    """The first thing that a phase of generation 0 writes is a line of metrics.jsonl."""
    workdir = Path(shutil.copytree(made_by_two, tmp_path / "run"))
    with lock(workdir):  # as a run under way has it
        codes, said = runs.end_all(runs.start_two(workdir, "--replay=0"))
    assert codes == [0, 0], said
    assert "generation 0: identical" in said[0]
    assert not (workdir / ".replay").exists()


def test_two_processes_generate_the_images_of_one_from_the_same_weights(made_by_two, tmp_path):
    """One process with as many devices samples from the weights of the two processes."""
    workdir = Path(shutil.copytree(made_by_two, tmp_path / "run"))
    shutil.rmtree(workdir / "gen_0001")
    for name in ("sample", "label", "generated_classifier", "measure", "record"):
        (workdir / f"gen_0000/{name}.json").unlink()
    config = json.loads((workdir / "config.json").read_text())
    config["parallel"] |= {"processes": 1, "cpu_devices": 4}
    config["loop"]["generations"] = 1
    (workdir / "config.json").write_text(json.dumps(config))
    one = ("--config.loop.generations=1", "--config.parallel.cpu_devices=4", "--accept_manifest")
    done = runs.call_run(workdir, "--config.loop.generations=2", *one)
    assert done.returncode == 0, done.stderr
    (alone,), both = digests(workdir), digests(made_by_two)[0]
    assert alone["diffusion"] == both["diffusion"]  # kept, not trained again
    assert alone["pixels"] == both["pixels"]
    assert alone["samples.npz"] == both["samples.npz"]


def test_a_second_replay_by_two_processes_is_refused_meanwhile(made_by_two):
    with lock(made_by_two, ".replay.lock", "replay"):
        codes, said = runs.end_all(runs.start_two(made_by_two, "--replay=0"))
    assert codes[0] == 2
    assert codes[1] != 0
    assert said[0] == f"error: --workdir={made_by_two}: another replay is using it\n"


LATE = """
import sys, time
import jax, numpy as np
from selfloop_jax.runtime import environment, multihost, parallel
environment.configure(nproc=1, cpu_devices=2, deterministic=True)
multihost.connect(2)
parallel.meet()
time.sleep(jax.process_index() * float(sys.argv[1]))
total = lambda _, rows: jax.lax.psum(rows.sum(), parallel.AXIS)[None]
print(parallel.map_over_devices(total)(np.zeros(1), np.arange(8.0)), file=sys.stderr)
"""


def test_a_process_may_come_to_its_first_step_much_later(tmp_path):
    """Later than the 30 s after which connecting the devices fails."""
    port = runs.free_port()
    processes = [
        runs.Process(
            [sys.executable, "-c", LATE, "35"], tmp_path, f"late{n}", runs.one_of_two(n, port)
        )
        for n in (0, 1)
    ]
    codes, said = runs.end_all(processes)
    assert codes == [0, 0], said
    assert [text.split() for text in said] == [["[28.", "28.", "28.", "28.]"]] * 2


def test_processes_with_different_configs_end_with_an_error(tmp_path):
    workdir = tmp_path / "run"
    codes, said = runs.end_all(runs.start_two(workdir, second=("--config.diffusion.batch=64",)))
    assert codes == [2, 2]
    for text in said:
        assert (
            text == "error: config.diffusion.batch = 64 on process 1: must be 32, as on process 0\n"
        )
    assert not (workdir / "config.json").exists()


def test_a_workdir_in_use_ends_both_processes(made_by_two, tmp_path):
    workdir = Path(shutil.copytree(made_by_two, tmp_path / "run"))
    with lock(workdir):
        codes, said = runs.end_all(runs.start_two(workdir, "--config.loop.generations=3"))
    assert codes[0] == 2
    assert codes[1] != 0
    assert said[0] == f"error: --workdir={workdir}: another run is using it\n"


IMPATIENT = """
import sys
from selfloop_jax import main
from selfloop_jax.runtime import multihost
multihost.CONNECT_SECONDS = 3
sys.exit(main.main(sys.argv))
"""


def test_a_process_that_never_connects_ends_the_run_with_an_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *runs.command(tmp_path / "run", *runs.TWO)[3:]],
        cwd=runs.ROOT,
        env=runs.one_of_two(1, runs.free_port()),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error: not all 2 processes connected to localhost:" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_number_of_processes_is_a_usage_error(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    done = runs.call_run(tmp_path / "run", "--config.parallel.processes=1")
    assert done.returncode == 2
    assert done.stderr == "error: parallel.processes = 1: must be 2, as many as were started\n"


def test_a_backend_with_processes_of_its_own_must_have_as_many_as_configured(monkeypatch):
    """As that of a TPU slice, whose shells name no other worker."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UsageError, match=r"^parallel.processes = 1: must be 4, as many as were s"):
        multihost.connect(1)
    multihost.connect(0)


SLURM = """
import jax
from jax._src import xla_bridge
from selfloop_jax.runtime import environment, multihost
environment.configure(2, 1, True)
multihost.connect(0)
print(jax.process_index(), jax.process_count(), xla_bridge.CUDA_VISIBLE_DEVICES.value)
"""


def test_tasks_of_slurm_find_each_other_and_take_the_one_gpu_that_each_sees():
    """Without a variable of launch/slurm.sh, JAX takes the GPU of the task's number on its node."""
    job = runs.free_port() % 2**12  # JAX derives the port from it
    slurm = {"JOB_ID": str(job), "STEP_NODELIST": "localhost", "NTASKS": "2"}
    found = {}
    for own in ({}, {"JAX_LOCAL_DEVICE_IDS": "0"}):
        tasks = []
        for task in "01":
            names = slurm | {"STEP_NUM_TASKS": "2", "PROCID": task, "LOCALID": task}
            variables = {f"SLURM_{name}": value for name, value in names.items()}
            tasks.append(
                subprocess.Popen(
                    [sys.executable, "-c", SLURM],
                    cwd=runs.ROOT,
                    env={**os.environ, **variables, **own},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        # All are waited for before any output is looked at.
        said = [task.communicate() for task in tasks]
        assert [task.returncode for task in tasks] == [0, 0], said
        found[len(own)] = [out.strip().splitlines()[-1] for out, _ in said]
    assert found == {0: ["0 2 0", "1 2 1"], 1: ["0 2 0", "1 2 0"]}


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("JAX_NUM_PROCESSES", "two", "a whole number"),
        ("JAX_PROCESS_ID", "1.0", "a whole number"),
        ("JAX_PROCESS_ID", "1", "below 1, the number of processes"),
        ("SLURM_STEP_NUM_TASKS", "2(x2)", "a whole number"),
    ],
)
def test_a_variable_without_a_fitting_number_is_a_usage_error(
    variable, value, rule, tmp_path, monkeypatch
):
    monkeypatch.setenv(variable, value)
    done = runs.call_run(tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr == f"error: {variable} = {value}: must be {rule}\n"


def launch(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_launch_scripts_refuse_a_wrong_n_and_a_missing_slurm():
    done = launch("local_multiprocess.sh", "two")
    assert (done.returncode, done.stderr.split(":")[:2]) == (2, ["error", " N = two"])
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_NTASKS"}
    done = subprocess.run(
        ["bash", "launch/slurm.sh"], cwd=runs.ROOT, capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: SLURM_NTASKS is not set: start this script with sbatch\n",
    )


def test_slurm_starts_one_process_per_task_and_says_how_to_resume(tmp_path):
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\necho "$@"\nexit 143\n')
    (tmp_path / "srun").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launch(
        "slurm.sh",
        "--config=x",
        PATH=path,
        REQUEUE="0",
        SLURM_NTASKS="8",
        SLURM_SUBMIT_DIR=str(runs.ROOT),
    )
    assert done.returncode == 143
    assert done.stdout.endswith("-m selfloop_jax.main --config=x\n")
    assert "the same command resumes" in done.stderr


def slurm(folder: Path, **variables: str) -> tuple[subprocess.CompletedProcess, str]:
    """launch/slurm.sh with commands that say what they were called with: and what they said."""
    said = folder / "said"
    for name, code in (("srun", 143), ("scontrol", 0)):
        text = f'env | grep -E "^(JAX|SRUN)" >> {said}\necho {name} "$@" >> {said}\nexit {code}\n'
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    common = {"SLURM_NTASKS": "4", "SLURM_SUBMIT_DIR": str(runs.ROOT), "SLURM_JOB_ID": "7"}
    done = launch("slurm.sh", "--config=x", **({"PATH": path} | common | variables))
    return done, said.read_text() if said.exists() else ""


def test_slurm_binds_each_task_to_its_gpu_and_queues_a_stopped_job_again(tmp_path):
    done, said = slurm(
        tmp_path, SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE="4", SLURM_CPUS_PER_TASK="6"
    )
    assert done.returncode == 0, done.stderr
    assert "queued again" in done.stderr
    assert {
        *("JAX_LOCAL_DEVICE_IDS=0", "SRUN_CPUS_PER_TASK=6", "JAX_PLATFORMS=cuda,cpu"),
        "scontrol requeue 7",
    } <= set(said.splitlines())


def test_slurm_leaves_queueing_again_to_the_user_where_asked(tmp_path):
    done, said = slurm(tmp_path, REQUEUE="0")
    assert done.returncode == 143
    assert "scontrol" not in said
    assert "JAX_PLATFORMS=cuda,cpu" not in said  # a partition without GPUs


def test_slurm_refuses_tasks_that_share_a_gpu_or_leave_one(tmp_path):
    done, said = slurm(tmp_path, SLURM_GPUS_ON_NODE="2", SLURM_NTASKS_PER_NODE="4")
    assert (done.returncode, said) == (2, "")
    assert done.stderr == (
        "error: --ntasks-per-node=4: must be 2, one task for each GPU of a node\n"
    )
