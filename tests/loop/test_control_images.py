"""Runs that are controls, and the shared generation 0 of arms that begin alike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs

from selfloop_jax.measure.metrics import METRICS

SMALL = [
    "--config.loop.generations=3",
    "--config.sample.count=60",
    "--config.measure.replicates=50",
]


REPLACE = [*SMALL, "--config.pool.rule=replace"]


def record(workdir: Path, generation: int) -> dict:
    return json.loads((workdir / f"gen_{generation:04d}/record.json").read_text())


@pytest.fixture(scope="module")
def loop(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("arms") / "loop"
    done = runs.call_run(workdir, *SMALL)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_branch_equals_a_run_that_computed_generation_0_itself(loop, tmp_path):
    arm = tmp_path / "arm"
    done = runs.call_run(
        arm, *REPLACE, f"--config.loop.branch_from={loop}", "--config.loop.generations=2"
    )
    assert done.returncode == 0, done.stderr
    assert "generation 0: copied from" in done.stderr
    assert record(arm, 0) == record(loop, 0)
    assert record(arm, 1)["pool"]["generated"] == {"0": 60}
    alone = tmp_path / "alone"
    done = runs.call_run(alone, *REPLACE, "--config.loop.generations=2")
    assert done.returncode == 0, done.stderr
    assert record(alone, 1)["digests"] == record(arm, 1)["digests"]
    again = runs.call(f"--workdir={arm}", "--replay=0")
    assert (again.returncode, "identical" in again.stderr) == (0, True), again.stderr


@pytest.mark.parametrize("kind", ["no_synthetic", "fresh_real", "neutral_drift", "oracle_resample"])
def test_a_control_trains_classifiers_alone_on_real_images(kind, loop, tmp_path):
    arm = tmp_path / kind
    of = [f"--config.loop.control_of={loop}"] if kind == "oracle_resample" else []
    shared = [f"--config.loop.branch_from={loop}", f"--config.loop.control={kind}", *of]
    done = runs.call_run(arm, *SMALL, *shared, "--config.report.enabled=True")
    assert done.returncode == 0, done.stderr
    for g in (1, 2):
        made = record(arm, g)
        replaced = record(loop, g)
        assert made["pool"]["generated"] == {}
        assert set(made["digests"]) == {"pool", "classifier", "predictions.npz"}
        assert {METRICS[key].section for key in made["metrics"]} == {"classifier"}
        assert "generated_counts" not in made["tables"]
        assert made["compilations"] == 0 or g == 1
        if kind != "no_synthetic":
            assert made["pool"]["size"] == replaced["pool"]["size"]
            assert made["pool"]["distinct_sources"] <= made["pool"]["size"]
    sizes = [record(arm, g)["pool"]["size"] for g in range(3)]
    assert sizes == {"no_synthetic": [900, 900, 900]}.get(kind, [900, 960, 1020])
    if kind == "oracle_resample":
        assert (
            record(arm, 2)["parents"]["control_of/gen_0001/samples.npz"]
            == record(loop, 1)["digests"]["samples.npz"]
        )
        unknown = record(loop, 1)["metrics"]["generated_unknown_group"]["value"]
        second = np.array(record(arm, 2)["pool"]["counts"])
        added = second - np.array(record(arm, 1)["pool"]["counts"])
        missing = added - np.array(record(loop, 1)["tables"]["generated_counts"])
        assert missing.min() >= 0
        assert missing.sum() == unknown
    again = runs.call(f"--workdir={arm}", "--replay=2")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["loop.branch_from={loop}", "seed=1"], "seed = 1: must be 0, the value of the run of"),
        (
            ["loop.branch_from={loop}", "pool.rule=accumulate_subsample", "pool.budget=100"],
            "pool.rule = accumulate_subsample: its generation 0 is not that of",
        ),
        (
            ["loop.control=oracle_resample", "loop.control_of={loop}", "classifier.width=8"],
            "classifier.width = 8: must be 4, the value of the run of loop.control_of",
        ),
        (["loop.branch_from={loop}", "classifier.width=8"], "classifier.width = 8"),
        (["loop.branch_from={tmp}"], "must be a run with a finished gen_0000"),
        (["loop.control=fresh_real", "sample.count=900"], "are held out; sample.count or"),
        (["loop.control=oracle_resample"], "loop.control_of = ''"),
        (["loop.control_of={loop}"], "must be '' where loop.control = none"),
        (["loop.control=oracle_resample", "loop.control_of={tmp}"], "must be the workdir of a run"),
        (
            ["loop.control=fresh_real", "pool.rule=fresh", "pool.n_real=9"],
            "none | no_synthetic where",
        ),
        (["verdict.metrics=('accuracy',)"], "verdict.metrics = accuracy: must be one of"),
        (["measure.level=1.0"], "measure.level = 1.0"),
        (["loop.control=fresh"], "loop.control = fresh: must be one of none | no_synthetic"),
        (["verdict.control=none"], "verdict.control = none: must be one of by_rule | no_"),
    ],
)  # fmt: skip
def test_a_mistake_leaves_nothing_behind(overrides, named, loop, tmp_path):
    given = [f"--config.{o.format(loop=loop, tmp=tmp_path)}" for o in overrides]
    ended = runs.call_run(tmp_path / "run", *SMALL, *given)
    assert ended.returncode == 2, ended.stderr
    assert named in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_an_arm_is_whole_without_the_run_that_it_took_from(loop, tmp_path):
    source, arm = tmp_path / "source", tmp_path / "arm"
    shutil.copytree(loop, source)
    shared = [
        *SMALL,
        f"--config.loop.branch_from={source}",
        "--config.loop.control=no_synthetic",
    ]
    assert runs.call_run(arm, *shared, "--config.loop.generations=1").returncode == 0
    shutil.rmtree(source)
    done = runs.call_run(arm, *shared, "--config.loop.generations=2")
    assert done.returncode == 0, done.stderr
    assert record(arm, 1)["exact"]


@pytest.mark.parametrize("name", ["diffusion", "classifier"])
def test_a_generation_0_without_a_checkpoint_is_not_taken_over(name, loop, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(loop, broken)
    shutil.rmtree(broken / "gen_0000" / name)
    ended = runs.call_run(tmp_path / "arm", *SMALL, f"--config.loop.branch_from={broken}")
    assert ended.returncode == 1, ended.stderr
    assert f"gen_0000/{name}" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "arm").exists()


def test_a_damaged_generation_0_is_not_taken_over(loop, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(loop, broken)
    path = broken / "gen_0000" / "samples.npz"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    ended = runs.call_run(tmp_path / "arm", *SMALL, f"--config.loop.branch_from={broken}")
    assert ended.returncode == 1
    assert "gen_0000/samples.npz: damaged" in ended.stderr
    assert not (tmp_path / "arm" / "gen_0000").exists()
