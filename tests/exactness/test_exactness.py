"""The promises of docs/reproducibility.md: stopped, replayed, extended, other devices, same bits.

KILLS=5 in the environment repeats the test that kills five times.
"""

import contextlib
import json
import os
import random
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


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# Moments to end a run at, in the order in which they come, by the files that appear then.
PAST_A_CHECKPOINT = "gen_*/diffusion/8"
SAMPLING = "gen_*/samples.part/*.npz"
WRITING_A_CHECKPOINT = "gen_*/*/*orbax-checkpoint-tmp*"
COMMITTING = "gen_*/measure.json"


def found(workdir: Path, moment: str) -> set[tuple[Path, int]]:
    """The files of a moment, with what tells a new file from an old one of the same name."""
    files = set()
    for path in workdir.glob(moment):
        with contextlib.suppress(FileNotFoundError):  # gone since
            files.add((path, path.stat().st_ino))
    return files


def end_at(
    moment: str, workdir: Path, sent: int, *extra: str, delay: float = 0.0
) -> tuple[int, str]:
    """Starts the run and sends a signal once a file of the moment appears: exit code and output."""
    before = found(runs.ROOT / workdir, moment)
    process = runs.Process(runs.command(workdir, *extra), runs.ROOT / workdir)
    process.wait(lambda: found(runs.ROOT / workdir, moment) - before, every=0.003)
    time.sleep(delay)
    process.send_signal(sent)
    return process.end()


def unfinished(workdir: Path) -> dict | None:
    """The furthest step logged of the training phase that was running, if one was."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "step" in line][-1]
    done = workdir / f"gen_{last['generation']:04d}" / f"{last['phase']}.json"
    return None if last["phase"] == "sample" or done.exists() else last


def check_resumed(before: dict | None, workdir: Path, output: str) -> None:
    """At most two intervals of the phase that was running were repeated, from a checkpoint or 0.

    The second one is what was trained while the checkpoint after the first was being written.
    """
    if before is None:
        return
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    where = (before["generation"], before["phase"])
    events = [line for line in lines if line.get("event") == "resumed"]
    resumed = [line["step"] for line in events if (line["generation"], line["phase"]) == where]
    assert before["step"] - max(resumed, default=0) < 2 * INTERVAL
    if resumed:
        assert f"at step {resumed[-1]} of " in output


@pytest.mark.parametrize("attempt", range(KILLS))
def test_killed_again_and_again_the_same_command_ends_in_the_same_bits(finished, tmp_path, attempt):
    workdir = tmp_path / "run"
    delay = 0.003 * attempt
    before = None
    for moment in (PAST_A_CHECKPOINT, SAMPLING, WRITING_A_CHECKPOINT, COMMITTING):
        code, output = end_at(moment, workdir, signal.SIGKILL, delay=delay)
        assert code == -signal.SIGKILL, output
        check_resumed(before, workdir, output)
        before = unfinished(workdir)
    delay = random.uniform(0, 3)
    print(f"killed {delay:.3f} s after the last pool was made")
    code, output = end_at("gen_0002/pool.json", workdir, signal.SIGKILL, delay=delay)
    assert code in (-signal.SIGKILL, 0), output  # it may have been done
    check_resumed(before, workdir, output)
    before = unfinished(workdir)
    again = runs.call_run(workdir)
    assert again.returncode == 0, again.stderr
    check_resumed(before, workdir, again.stderr)
    assert digests(workdir) == digests(finished)


def test_stopped_by_sigterm_and_extended_a_run_has_the_bits_of_one_in_one_go(finished, tmp_path):
    workdir = tmp_path / "run"
    relative = Path(os.path.relpath(workdir, runs.ROOT))
    shorter = "--config.loop.generations=2"
    for moment, generation in (("gen_0000/diffusion/8", 0), ("gen_0001/samples.part/*.npz", 1)):
        code, output = end_at(moment, relative, signal.SIGTERM, shorter)
        assert code == 143, output
        assert f"stopped at generation {generation}" in output
        assert len(records(workdir)) == generation
    again = runs.call_run(relative, shorter)
    assert again.returncode == 0, again.stderr
    assert digests(workdir) == digests(finished)[:2]
    again = runs.call_run(relative)
    assert again.returncode == 0, again.stderr
    assert digests(workdir) == digests(finished)


def test_a_disk_that_takes_no_more_ends_in_one_line_and_loses_nothing(finished, tmp_path):
    """Only files of up to 50 KiB can be written."""
    workdir = tmp_path / "run"
    shorter = "--config.loop.generations=1"
    failed = subprocess.run(
        ["bash", "-c", 'ulimit -f 50; exec "$@"', "bash", *runs.command(workdir, shorter)],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        # Programs cut off at 50 KiB must not enter the compile cache, which is read all the same.
        env={**os.environ, "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": str(2**60)},
    )
    assert failed.returncode == 1, failed.stderr
    assert f"error: {workdir}/gen_0000/diffusion/8: not saved: " in failed.stderr
    assert runs.call_run(workdir, shorter).returncode == 0
    assert digests(workdir) == digests(finished)[:1]


def test_real_images_that_changed_under_a_resumed_generation_are_noticed(copy):
    path = copy / "gen_0002/pool.json"
    for file in (copy / "gen_0002").glob("*.json"):
        if file != path:
            file.unlink()
    entry = json.loads(path.read_text())
    entry["digests"]["pool"] = "0" * 64
    path.write_text(json.dumps(entry))
    resumed = runs.call_run(copy)
    assert resumed.returncode == 1
    assert "gen_0002/pool.json: the real images are no longer" in resumed.stderr.splitlines()[-1]


def test_another_run_in_the_same_workdir_is_refused(finished):
    other = runs.call_run(finished, "--config.seed=1")
    assert other.returncode == 2
    assert other.stderr.startswith("error: seed = 1: ")
    assert len(other.stderr.splitlines()) == 1


def test_another_manifest_is_refused_unless_accepted(copy):
    path = copy / "manifest.json"
    entries = json.loads(path.read_text())
    entries[-1]["numpy"] = "0.1"
    path.write_text(json.dumps(entries))
    shutil.rmtree(copy / "gen_0002")
    refused = runs.call_run(copy)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: numpy = ")
    accepted = runs.call_run(copy, "--accept_manifest")
    assert accepted.returncode == 0, accepted.stderr
    assert [record["exact"] for record in records(copy)] == [True, True, False]
    assert len(json.loads(path.read_text())) == 2


def replay(workdir: Path, generation: int) -> subprocess.CompletedProcess:
    return runs.call(f"--workdir={workdir}", f"--replay={generation}")


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


@pytest.mark.parametrize(
    ("generation", "said"), [(1, "made with another jaxlib"), (2, "differs: ")]
)
def test_a_replay_compares_with_the_manifest_of_its_generation(copy, generation, said):
    """The last generation was made on this jaxlib, those before it on another one."""
    path = copy / "manifest.json"
    (entry,) = json.loads(path.read_text())
    path.write_text(json.dumps([{**entry, "jaxlib": "0.1"}, entry]))
    record_path = copy / f"gen_{generation:04d}/record.json"
    record = json.loads(record_path.read_text())
    assert record["manifest"] == 0
    record["manifest"] = generation - 1
    record["digests"]["pool"] = "0" * 64
    record_path.write_text(json.dumps(record))
    again = replay(copy, generation)
    assert again.returncode == 1
    assert f"generation {generation}: {said}" in again.stderr


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


@pytest.mark.parametrize("devices", [1, 2])
def test_samples_of_the_same_weights_are_the_same_bits_on_other_devices(
    finished, tmp_path, devices
):
    """The finished run sampled on four devices."""
    record = records(finished)[0]
    shutil.copytree(finished / "gen_0000/diffusion", tmp_path / "gen_0000/diffusion")
    arguments = [str(finished), str(devices), str(tmp_path), record["digests"]["diffusion"]]
    sampled = subprocess.run(
        [sys.executable, "-c", SAMPLE, *arguments], cwd=runs.ROOT, capture_output=True, text=True
    )
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.strip() == record["digests"]["pixels"]


def test_the_sampled_images_are_not_all_alike(finished):
    pixels = np.load(finished / "gen_0002/samples.npz")["pixels"]
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == len(pixels)
