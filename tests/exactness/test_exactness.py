"""The promises of docs/reproducibility.md: stopped, replayed, extended, on more devices: the same bits.

KILLS=5 in the environment kills five times in each kind of moment instead of once.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import runs

KILLS = int(os.environ.get("KILLS", "1"))


INTERVAL = 8  # checkpoint.interval_steps of a shrunk run


def records(workdir: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(workdir.glob("gen_*/record.json"))]


def digests(workdir: Path) -> list[dict]:
    return [{**record["digests"], **record["parents"]} for record in records(workdir)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("reference") / "run"
    done = runs.run(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def copy(reference, tmp_path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "run"))


def past_a_checkpoint(workdir: Path, generation: int) -> bool:
    return (workdir / f"gen_{generation:04d}/diffusion/8").is_dir()


def writing_a_checkpoint(workdir: Path, generation: int) -> bool:
    return any((workdir / f"gen_{generation:04d}").glob("*/*orbax-checkpoint-tmp*"))


def sampling(workdir: Path, generation: int) -> bool:
    return len(list((workdir / f"gen_{generation:04d}/samples.part").glob("*.npz"))) > 1


def committing(workdir: Path, generation: int) -> bool:
    folder = workdir / f"gen_{generation:04d}"
    return any((folder / name).exists() for name in ("measure.json", "record.json.tmp"))


MOMENTS = (past_a_checkpoint, writing_a_checkpoint, sampling, committing)


def end_at(
    moment, generation: int, workdir: Path, sent: int, delay: float = 0.0
) -> tuple[int, str]:
    """Starts the run, sends a signal once the moment has come, and returns exit code and output."""
    process = subprocess.Popen(
        runs.command(workdir),
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not moment(workdir, generation):
        time.sleep(0.0005)
    time.sleep(delay)
    process.send_signal(sent)
    output = process.communicate()[0]
    return process.returncode, output


def unfinished(workdir: Path) -> dict | None:
    """The furthest step logged of the training phase that was running, if one was."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "step" in line][-1]
    done = workdir / f"gen_{last['generation']:04d}" / f"{last['phase']}.json"
    return None if last["phase"] == "sample" or done.exists() else last


def check_resumed(before: dict | None, workdir: Path, output: str) -> None:
    """At most one interval of the phase that was running was done again, from a checkpoint or from 0."""
    if before is None:
        return
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    where = (before["generation"], before["phase"])
    resumed = [
        r["step"]
        for r in lines
        if r.get("event") == "resumed" and (r["generation"], r["phase"]) == where
    ]
    assert before["step"] - max(resumed, default=0) <= INTERVAL
    if resumed:
        assert f"going on at step {resumed[-1]}" in output


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_killed_at_any_moment_the_same_command_ends_in_the_same_bits(moment, reference, tmp_path):
    for attempt in range(KILLS):
        generation, workdir = attempt % 3, tmp_path / f"run{attempt}"
        code, _ = end_at(moment, generation, workdir, signal.SIGKILL, delay=0.003 * (attempt // 3))
        assert code == -signal.SIGKILL
        assert len(records(workdir)) in (generation, generation + 1)
        before = unfinished(workdir)
        again = runs.run(workdir)
        assert again.returncode == 0, again.stderr
        print(f"killed {moment.__name__} of generation {generation}:", again.stderr.splitlines()[0])
        check_resumed(before, workdir, again.stderr)
        assert digests(workdir) == digests(reference)


@pytest.mark.parametrize(
    "moment", [past_a_checkpoint, sampling], ids=lambda moment: moment.__name__
)
def test_sigterm_saves_and_exits_143(moment, reference, tmp_path):
    workdir = tmp_path / "run"
    started = time.perf_counter()
    code, output = end_at(moment, 1, workdir, signal.SIGTERM)
    assert (code, "stopped at generation 1" in output) == (143, True), output
    assert time.perf_counter() - started < 120
    again = runs.run(workdir)
    assert again.returncode == 0, again.stderr
    assert "going on at" in again.stderr
    assert digests(workdir) == digests(reference)


def test_a_longer_run_is_the_extension_of_a_shorter_one(reference, tmp_path):
    workdir = Path(os.path.relpath(tmp_path / "run", runs.ROOT))
    assert runs.run(workdir, "--config.loop.generations=2").returncode == 0
    assert runs.run(workdir).returncode == 0
    assert digests(tmp_path / "run") == digests(reference)


def test_a_disk_that_takes_no_more_ends_in_one_line_and_loses_nothing(reference, tmp_path):
    workdir = tmp_path / "run"
    failed = subprocess.run(
        ["bash", "-c", 'ulimit -f 50; exec "$@"', "bash", *runs.command(workdir)],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },  # its files would be cut off as well
    )
    assert failed.returncode == 1, failed.stderr
    assert f"error: {workdir}/gen_0000/diffusion/8: not saved: " in failed.stderr
    assert runs.run(workdir).returncode == 0
    assert digests(workdir) == digests(reference)


def test_real_images_that_changed_under_a_resumed_generation_are_noticed(copy):
    path = copy / "gen_0002/pool.json"
    for file in (copy / "gen_0002").glob("*.json"):
        if file != path:
            file.unlink()
    entry = json.loads(path.read_text())
    entry["digests"]["pool"] = "0" * 64
    path.write_text(json.dumps(entry))
    resumed = runs.run(copy)
    assert resumed.returncode == 1
    assert "gen_0002/pool.json: the real images are no longer" in resumed.stderr.splitlines()[-1]


def test_another_run_in_the_same_workdir_is_refused(reference):
    other = runs.run(reference, "--config.seed=1")
    assert other.returncode == 2
    assert other.stderr.startswith("error: seed = 1: ")
    assert len(other.stderr.splitlines()) == 1


def test_another_manifest_is_refused_unless_accepted(copy):
    path = copy / "manifest.json"
    entries = json.loads(path.read_text())
    entries[-1]["numpy"] = "0.1"
    path.write_text(json.dumps(entries))
    shutil.rmtree(copy / "gen_0002")
    refused = runs.run(copy)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: numpy = ")
    accepted = runs.run(copy, "--accept_manifest")
    assert accepted.returncode == 0, accepted.stderr
    assert [record["exact"] for record in records(copy)] == [True, True, False]
    assert len(json.loads(path.read_text())) == 2


def replay(workdir: Path, generation: int) -> subprocess.CompletedProcess:
    return runs.main(f"--workdir={workdir}", f"--replay={generation}")


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_replay_needs_none_of_the_generations_own_artifacts(copy):
    for name in ("diffusion", "classifier"):
        shutil.rmtree(copy / "gen_0002" / name)
    for name in ("samples.npz", "predictions.npz"):
        (copy / "gen_0002" / name).unlink()
    again = replay(copy, 2)
    assert again.returncode == 0, again.stderr
    assert "generation 2: identical" in again.stderr


def test_replay_names_the_artifact_whose_recorded_digest_differs(copy):
    path = copy / "gen_0002/record.json"
    record = json.loads(path.read_text())
    record["digests"]["samples.npz"] = "0" * 64
    path.write_text(json.dumps(record))
    again = replay(copy, 2)
    assert again.returncode == 1
    assert "samples.npz" in again.stderr.splitlines()[-1]


def test_replay_names_damaged_samples_of_a_parent(copy):
    flip_a_byte(copy / "gen_0001/samples.npz")
    again = replay(copy, 2)
    assert again.returncode == 1
    assert "gen_0001/samples.npz: damaged" in again.stderr.splitlines()[-1]


def test_replay_names_a_damaged_checkpoint_of_a_parent(copy):
    data = max(
        (copy / "gen_0001/diffusion/16").glob("**/d/*"), key=lambda path: path.stat().st_size
    )
    flip_a_byte(data)
    again = replay(copy, 2)
    assert again.returncode == 1
    assert "gen_0001/diffusion/16: damaged" in again.stderr.splitlines()[-1]


def test_replay_without_a_parent_is_a_usage_error(copy):
    (copy / "gen_0001/record.json").unlink()
    again = replay(copy, 2)
    assert again.returncode == 2
    assert len(again.stderr.splitlines()) == 1


def test_replay_on_another_manifest_reports_distances(copy):
    path = copy / "manifest.json"
    entries = json.loads(path.read_text())
    entries[-1]["jaxlib"] = "0.1"
    path.write_text(json.dumps(entries))
    record_path = copy / "gen_0001/record.json"
    record = json.loads(record_path.read_text())
    record["digests"]["classifier"] = "0" * 64
    record["metrics"]["accuracy"]["value"] += 0.5
    record_path.write_text(json.dumps(record))
    again = replay(copy, 1)
    assert again.returncode == 1
    assert "another jaxlib" in again.stderr
    assert "classifier: weights differ by 0.00e+00" in again.stderr
    assert "accuracy: " in again.stderr.splitlines()[-1]


SAMPLE = """
import sys, json
from pathlib import Path
from selfloop_jax import config as configs
from selfloop_jax.runtime import environment
config = configs.typed(json.loads(Path(sys.argv[1]).joinpath("config.json").read_text()))
environment.configure(config.parallel.nproc, int(sys.argv[2]), config.parallel.deterministic)
from selfloop_jax.loop import phases, setup
context = setup.open_run(config, lambda: False)
run = setup.generation(context, 0, Path(sys.argv[3]), Path(sys.argv[1]))
run.results["diffusion"] = {"digests": {"diffusion": sys.argv[4]}}
print(phases.SAMPLE.run(run).digests["pixels"])
"""


def test_samples_of_the_same_weights_are_the_same_bits_on_any_number_of_devices(tmp_path):
    stored = tmp_path / "run"
    attention = ["--config.diffusion.unet.attention=(4,)", "--config.loop.generations=1"]
    assert runs.run(stored, *attention).returncode == 0
    record = records(stored)[0]
    found = []
    for devices in (1, 2, 4):
        out = tmp_path / f"on{devices}"
        shutil.copytree(stored / "gen_0000/diffusion", out / "gen_0000/diffusion")
        arguments = [str(stored), str(devices), str(out), record["digests"]["diffusion"]]
        sampled = subprocess.run(
            [sys.executable, "-c", SAMPLE, *arguments],
            cwd=runs.ROOT,
            capture_output=True,
            text=True,
        )
        assert sampled.returncode == 0, sampled.stderr
        found.append(sampled.stdout.strip())
    assert found == [record["digests"]["pixels"]] * 3


def test_the_sampled_images_are_not_all_alike(reference):
    pixels = np.load(reference / "gen_0002/samples.npz")["pixels"]
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == len(pixels)
