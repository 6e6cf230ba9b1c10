"""The shipped quickstart, shrunk, from the command line to the report; and rarer settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import runs

from selfloop_jax.measure import fairness
from selfloop_jax.measure.metrics import METRICS
from selfloop_jax.measure.test_set import TestSet


def record(workdir: Path, generation: int) -> dict:
    return json.loads((workdir / f"gen_{generation:04d}/record.json").read_text())


def test_every_generation_has_its_files(finished):
    names = {
        "record.json",
        "samples.npz",
        "predictions.npz",
        "diffusion",
        "classifier",
        "pool.json",
    }
    for generation in range(3):
        assert names <= {path.name for path in (finished / f"gen_{generation:04d}").iterdir()}
    assert not list(finished.glob("gen_*/samples.part"))
    assert not list(finished.glob("**/*.tmp"))
    assert (finished / "report.html").stat().st_size > 50_000


def test_pools_accumulate_with_provenance(finished):
    pools = [record(finished, g)["pool"] for g in range(3)]
    assert [p["size"] for p in pools] == [900, 1100, 1300]
    assert [p["generated"] for p in pools] == [{}, {"0": 200}, {"0": 200, "1": 200}]
    assert [int(np.sum(p["counts"])) + p["unknown_group"] for p in pools] == [900, 1100, 1300]
    assert pools[0]["unknown_group"] == 0


def test_every_fairness_number_can_be_recomputed_from_the_predictions(finished):
    for generation in range(3):
        stored = np.load(finished / f"gen_{generation:04d}/predictions.npz")
        columns = stored["label"], stored["logits"].argmax(1), stored["group"]
        written = record(finished, generation)
        aligned = written["data"]["aligned_group"]
        again = fairness.summary(TestSet(*columns, 10, 2, aligned_group=aligned))
        assert again == {key: written["metrics"][key]["value"] for key in again}


def test_every_number_carries_its_uncertainty_and_its_baseline(finished):
    for generation in range(3):
        written = record(finished, generation)
        metrics = written["metrics"]
        for key, number in metrics.items():
            assert key in METRICS
            if METRICS[key].interval:
                assert number["low"] - 1e-9 <= number["value"] <= number["high"] + 1e-9, key
            assert ("p" in number) == ("null" in number)
            assert ("null" in number) or not METRICS[key].has_null, key
        assert metrics["fid"]["baseline"] < metrics["fid"]["value"]
        classifier = record(finished, 0)["digests"]["classifier"]
        assert written["fidelity_features"]["digest"] == classifier
        assert {"null", "p"} <= metrics["kl_to_real"].keys() & metrics["subgroup_coverage"].keys()
        assert np.shape(written["tables"]["recall"]["value"]) == (10, 2)
        assert len(written["tables"]["fidelity_by_class"]) == 10
        stored = np.load(finished / f"gen_{generation:04d}/neighbours.npz")
        assert stored["pixels"].shape == stored["neighbour"].shape == (30, 8, 8, 3)


def test_the_test_set_shows_every_digit_in_every_colour(finished):
    stored = np.load(finished / "gen_0000/predictions.npz")
    assert len(stored["id"]) == len(np.unique(stored["id"])) == 720
    assert np.bincount(stored["group"]).tolist() == [360, 360]


def test_nothing_is_compiled_after_generation_0_though_the_pool_grows(finished):
    compiled = [record(finished, g)["compilations"] for g in range(3)]
    assert compiled[0] > 0
    assert compiled[1:] == [0, 0]


def test_parents_name_everything_read_of_earlier_generations(finished):
    assert record(finished, 0)["parents"] == {}
    assert set(record(finished, 2)["parents"]) == {
        *(
            "gen_0000/samples.npz",
            "gen_0001/samples.npz",
            "gen_0001/diffusion",
            "gen_0001/record.json",
        ),
        "gen_0000/classifier",
    }


def test_progress_is_one_line_an_interval_and_metrics_are_json_lines(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"diffusion", "classifier", "generated_classifier"}
    losses = [
        line["loss"] for line in lines if (line["generation"], line["phase"]) == (0, "diffusion")
    ]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_complete_run_says_so_and_changes_no_file(finished):
    def state():
        return {
            p: (p.stat().st_mtime_ns, p.read_bytes()) for p in finished.rglob("*") if p.is_file()
        }

    before = state()
    again = runs.call_run(finished, "--config.report.enabled=True")
    assert again.returncode == 0
    assert "complete: 3 generations" in again.stderr
    assert state() == before


VARIANTS = {
    "ddpm": [
        *("diffusion.process=ddpm", "sample.sampler=ancestral", "sample.guidance=1.0"),
        *(
            "diffusion.condition_on=label_group",
            "loop.group_source=requested",
            "pool.rule=substitute",
        ),
        *(
            "loop.label_source=frozen",
            "data.bias.kind=rho",
            "sample.count=900",
            "sample.batch_per_device=150",
        ),
        *("pool.alpha=0.3", "sample.request=real", "diffusion.unet.dropout=0.1"),
    ],
    "host": [
        *(
            "diffusion.process=edm",
            "data.placement=host",
            "parallel.steps_per_dispatch=4",
            "classifier.network=lenet",
        ),
        *(
            "pool.rule=fresh",
            "pool.n_real=100",
            "pool.n_generated=150",
            "loop.label_source=previous",
        ),
        *("data.colorize=background", "data.bias.kind=unbiased", "diffusion.later.start=scratch"),
        *(
            "measure.generated_only=first",
            "classifier.later.start=previous",
            "sample.request=pool",
        ),
        "sample.sampler=euler",
        "measure.batch=400",
    ],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_rarer_settings_run_and_repeat_exactly(name, tmp_path):
    overrides = [f"--config.{override}" for override in VARIANTS[name]]
    overrides.append("--config.loop.generations=2")
    command = runs.command(tmp_path / "run", *overrides)[3:]
    if "classifier.network=lenet" in VARIANTS[name]:
        # LeNet has one size and refuses that of another network.
        size = ("--config.classifier.stages", "--config.classifier.width")
        command = [argument for argument in command if not argument.startswith(size)]
    done = runs.call(*command)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "run", 1)["compilations"] == 0
    says_steps = "training steps in one program: 4 (parallel.steps_per_dispatch)" in done.stderr
    assert says_steps == ("parallel.steps_per_dispatch=4" in VARIANTS[name])
    again = runs.call(f"--workdir={tmp_path / 'run'}", "--replay=1")
    assert again.returncode == 0, again.stderr
