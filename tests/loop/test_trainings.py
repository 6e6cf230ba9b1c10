"""Several trainings of the classifier on every pool: what is averaged, and what stays as it was."""

import json

import pytest
import runs

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
