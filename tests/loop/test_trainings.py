"""Several trainings of the classifier on every pool: what is averaged, and what stays as it was."""

import json

import numpy as np
import pytest
import runs

from selfloop_jax.measure import fairness
from selfloop_jax.measure.test_set import TestSet

SHORT = ("--config.loop.generations=2", "--config.measure.generated_only=never")


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """A run with one training of the classifier, and one with three."""
    folders = {}
    for trainings in (1, 3):
        folders[trainings] = tmp_path_factory.mktemp("trainings") / str(trainings)
        flag = f"--config.measure.trainings={trainings}"
        done = runs.call_run(folders[trainings], *SHORT, flag)
        assert done.returncode == 0, done.stderr
    return folders


def record(workdir, generation):
    return json.loads((workdir / f"gen_{generation:04d}" / "record.json").read_text())


@pytest.mark.parametrize("generation", [0, 1])
def test_further_trainings_change_no_bit_of_the_loop(generation, workdirs):
    one, three = (record(workdirs[trainings], generation) for trainings in (1, 3))
    same = set(one["digests"])
    assert {name: three["digests"][name] for name in same} == one["digests"]
    assert set(three["digests"]) - same == {"classifier_1", "classifier_2"}
    assert len({three["digests"][name] for name in ("classifier", "classifier_1")}) == 2
    assert (one["trainings"], three["trainings"]) == (1, 3)


def test_numbers_are_means_over_trainings(workdirs):
    """The mean is not that of the first classifier, and lies within its reach of it."""
    one, three = (record(workdirs[trainings], 1)["metrics"]["accuracy"] for trainings in (1, 3))
    assert one["value"] != three["value"]
    assert abs(one["value"] - three["value"]) < 0.3
    assert three["low"] < three["value"] < three["high"]
    # Images that were generated are judged by the first classifier of generation 0 alone.
    agreement = [record(workdirs[t], 1)["metrics"]["classifier_agreement"] for t in (1, 3)]
    assert agreement[0] == agreement[1]


def test_a_replay_repeats_every_training(workdirs):
    done = runs.call_run(workdirs[3], *SHORT, "--config.measure.trainings=3", "--replay=1")
    assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout + done.stderr


def classifiers(count):
    """Test sets of one set of images with the predictions of several classifiers."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 40)
    group = np.tile(np.arange(2), 60)
    sets = []
    for _ in range(count):
        wrong = random.random(120) < 0.2 + 0.2 * group
        sets.append(TestSet(label, np.where(wrong, (label + 1) % 3, label), group, 3, 2))
    return sets


def test_values_and_intervals_are_means_and_one_classifier_twice_is_itself():
    first, *more = classifiers(3)
    alone = [fairness.numbers(one, (0,), 100) for one in (first, *more)]
    mean = fairness.numbers(first, (0,), 100, more=more)
    for key, number in mean.items():
        for part in ("value", "low", "high"):
            if part in number:
                expected = np.mean([one[key][part] for one in alone])
                assert number[part] == pytest.approx(expected, nan_ok=True), (key, part)
    twice = fairness.numbers(first, (0,), 100, more=[first])
    for key, number in twice.items():
        np.testing.assert_equal(number["value"], alone[0][key]["value"])
        # The null too: groups are permuted once for both.
        np.testing.assert_allclose(number.get("null", 0), alone[0][key].get("null", 0), atol=1e-12)
        np.testing.assert_equal(number.get("p"), alone[0][key].get("p"))


def test_the_null_of_a_mean_is_narrower_than_the_mean_of_nulls():
    """Noise of several classifiers averages out, and with it the gap that noise alone makes."""
    first, *more = classifiers(8)
    key = "equal_opportunity_difference_mean"
    one = fairness.numbers(first, (0,), 200)[key]["null"]
    mean = fairness.numbers(first, (0,), 200, more=more)[key]["null"]
    assert mean[2] - mean[0] < one[2] - one[0]
