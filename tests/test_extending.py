"""The blocks of docs/extending.md, run as they stand as a user's config, outside of the package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs

from selfloop_jax.training.checkpoints import saved_weights

# What makes a run small; the config of the document sets the rest.
TINY = (
    "loop.generations=2",
    "sample.count=60",
    "sample.steps=2",
    "sample.batch_per_device=30",
    "diffusion.unet.channels=8",
    "diffusion.unet.multipliers=(1,)",
    "diffusion.batch=32",
    "diffusion.steps=4",
    "diffusion.later.steps=4",
    "classifier.width=4",
    "classifier.batch=32",
    "classifier.steps=8",
    "classifier.later.steps=8",
    "measure.batch=100",
    "measure.replicates=50",
    "measure.generated_only=never",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the blocks as my_config.py, and the run that it describes."""
    folder = tmp_path_factory.mktemp("extending")
    text = (runs.ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (folder / "my_config.py").write_text("\n".join(blocks))
    done = main(folder, "--config=my_config.py", *(f"--config.{override}" for override in TINY))
    assert done.returncode == 0, done.stderr
    return folder


def main(folder: Path, *arguments: str, workdir="run") -> subprocess.CompletedProcess:
    """The program, started in a folder that is not the repository."""
    return subprocess.run(
        [sys.executable, "-m", "selfloop_jax.main", *arguments, f"--workdir={workdir}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        text=True,
    )


def record(folder: Path, generation: int, workdir="run") -> dict:
    path = folder / workdir / f"gen_{generation:04d}" / "record.json"
    return json.loads(path.read_text())


def test_the_source_is_read(folder):
    data = record(folder, 0)["data"]
    assert data["source"] == "squares"
    assert data["classes"] == ["left", "right"]
    assert data["groups"] == ["black", "gray"]


def test_the_pool_rule_composes_the_pool(folder):
    real = record(folder, 0)["pool"]["size"]
    pool = record(folder, 1)["pool"]
    assert pool["real"] == (real + 1) // 2
    assert pool["generated"] == {"0": 60}


def test_the_metric_is_recorded_with_null_and_p_and_shown(folder):
    number = record(folder, 1)["metrics"]["recall_range"]
    predictions = np.load(folder / "run" / "gen_0001" / "predictions.npz")
    right = predictions["logits"].argmax(axis=1) == predictions["label"]
    recalls = []
    for c in range(2):
        for g in range(2):
            recalls.append(right[(predictions["label"] == c) & (predictions["group"] == g)].mean())
    assert number["value"] == pytest.approx(max(recalls) - min(recalls))
    assert len(number["null"]) == 3
    assert 0 < number["p"] <= 1
    assert "range of subgroup recalls" in (folder / "run" / "report.html").read_text()


def test_the_network_is_trained(folder):
    state = saved_weights(folder / "run" / "gen_0001" / "classifier")
    assert {name: sorted(layer) for name, layer in state.items()} == {
        "Conv_0": ["bias", "kernel"],
        "Dense_0": ["bias", "kernel"],
    }
    assert state["Conv_0"]["kernel"].shape == (3, 3, 3, 4)


def test_the_feature_network_gives_the_fidelity(folder):
    network = record(folder, 1)["fidelity_features"]
    assert network == {"network": "colours", "digest": None, "dimension": 3}
    report = (folder / "run" / "report.html").read_text()
    assert "FID (colours features)" in report
    assert "in colours features" in report
    assert "FID (classifier features)" not in report


def test_the_solver_makes_the_images_and_is_counted(folder):
    done = main(
        folder,
        "--config=my_config.py",
        *(f"--config.{override}" for override in TINY),
        "--dry_run",
    )
    # Two steps of two evaluations each.
    assert "network evaluations per generation, sampling: 240" in done.stdout
    assert record(folder, 1)["digests"]["samples.npz"]


def test_the_phase_adds_its_number(folder):
    samples = np.load(folder / "run" / "gen_0001" / "samples.npz")
    number = record(folder, 1)["metrics"]["brightness"]
    assert number["value"] == pytest.approx(samples["pixels"].mean() / 255)


def test_the_study_replays(folder):
    done = main(folder, "--config=my_config.py", *(f"--config.{o}" for o in TINY), "--replay=1")
    assert done.returncode == 0, done.stderr


def pi(folder: Path, *arguments: str) -> str:
    """What the study without a pool says on stderr."""
    study = ("--config=my_config.py", "--config.study=pi")
    done = main(folder, *study, *arguments, workdir="pi")
    assert done.returncode == 0, done.stderr
    assert "report" not in done.stdout
    return done.stderr


def test_a_study_without_a_pool_runs_resumes_and_replays(folder):
    assert "generation 0 done: pi is about " in pi(folder, "--config.loop.generations=1")
    two = ("--config.loop.generations=2", "--config.log.tensorboard=True")
    pi(folder, *two)
    points = np.load(folder / "pi" / "gen_0001" / "points.npz")["points"]
    found = record(folder, 1, "pi")
    assert found["pi"] == 4 * (np.hypot(*points.T) < 1).mean()
    assert found["digests"].keys() == {"points.npz"}
    assert list((folder / "pi" / "tensorboard").iterdir())
    # Stopped between its two phases, the stage is resumed at the second.
    for name in ("record.json", "estimate.json"):
        (folder / "pi" / "gen_0001" / name).unlink()
    sampled = (folder / "pi" / "gen_0001" / "points.json").read_text()
    pi(folder, *two)
    assert record(folder, 1, "pi")["pi"] == found["pi"]
    assert (folder / "pi" / "gen_0001" / "points.json").read_text() == sampled
    assert "already complete" in pi(folder, *two)
    assert "generation 1: identical" in pi(folder, *two, "--replay=1")
    assert not (folder / "pi" / "report.html").exists()


def test_an_unknown_name_lists_the_added_ones(folder):
    done = main(folder, "--config=my_config.py", "--config.pool.rule=half", "--dry_run")
    assert done.returncode == 2
    assert "half_replace" in done.stderr
