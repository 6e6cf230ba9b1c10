"""Controls and the shared generation 0: which real images stand in, and arms that begin alike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop_jax.data.images import REAL, Images
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import controls
from selfloop_jax.measure.metrics import METRICS

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


KEY_PATH = (0, "control", "test")


CLASSES, GROUPS, DIGITS = 3, 4, 6  # digits of a class, each in every colour


def candidates() -> Images:
    digit = np.repeat(np.arange(CLASSES * DIGITS), GROUPS)
    group = np.tile(np.arange(GROUPS), CLASSES * DIGITS)
    return Images(
        pixels=np.zeros((len(digit), 2, 2, 3), np.uint8),
        label=(digit % CLASSES).astype(np.int32),
        group=group.astype(np.int32),
        origin=np.full(len(digit), REAL, np.int32),
        id=(digit * GROUPS + group).astype(np.uint32),
        source_id=digit.astype(np.uint32),
    )


joints = st.lists(
    st.lists(st.integers(0, 2), min_size=CLASSES * GROUPS, max_size=CLASSES * GROUPS)
    .filter(any)
    .map(lambda counts: np.array(counts).reshape(CLASSES, GROUPS)),
    min_size=1,
    max_size=3,
)


@SETTINGS
@given(joints)
def test_matched_images_have_the_joint_histograms_and_no_image_twice(tables):
    found = controls.matched_real_sets(KEY_PATH, candidates(), tables, "field")
    for images, table in zip(found, tables, strict=True):
        np.testing.assert_array_equal(images.counts(CLASSES, GROUPS), table)
        assert (images.origin == REAL).all()
        np.testing.assert_array_equal(images.requested_label, images.label)
    ids = np.concatenate([images.id for images in found])
    assert len(np.unique(ids)) == len(ids)


@SETTINGS
@given(joints)
def test_a_longer_list_begins_with_the_sets_of_a_shorter_one(tables):
    whole = controls.matched_real_sets(KEY_PATH, candidates(), tables, "field")
    part = controls.matched_real_sets(KEY_PATH, candidates(), tables[:1], "field")
    np.testing.assert_array_equal(part[0].id, whole[0].id)


def test_a_digit_serves_in_a_second_colour_only_when_all_have_served():
    one_each = np.zeros((CLASSES, GROUPS), int)
    one_each[0] = [2, 2, 2, 0]  # six images of class 0, which has six digits
    (images,) = controls.matched_real_sets(KEY_PATH, candidates(), [one_each], "field")
    assert len(np.unique(images.source_id)) == 6
    one_each[0] = [2, 2, 2, 3]
    (images,) = controls.matched_real_sets(KEY_PATH, candidates(), [one_each], "field")
    assert np.bincount(images.source_id).max() == 2


def test_another_key_path_takes_other_images():
    table = np.full((CLASSES, GROUPS), 2)
    one, two = (
        controls.matched_real_sets((seed,), candidates(), [table], "f")[0].id for seed in (0, 1)
    )
    assert (one != two).any()


def test_a_short_reserve_is_named_with_both_counts():
    table = np.zeros((CLASSES, GROUPS), int)
    table[1, 2] = 4
    with pytest.raises(
        UsageError, match=r"^loop.control = x: class 1, group 2: 8 .* 6 are held out"
    ):
        controls.matched_real_sets(KEY_PATH, candidates(), [table, table], "loop.control = x")


def test_the_joint_of_a_sampled_set_deals_unknown_groups_out_in_real_shares():
    matched = candidates().take(np.flatnonzero(candidates().label == 0)[:8])
    unknown = Images(**{**vars(matched), "group": np.full(8, -1, np.int32)})
    real = np.array([[3, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(controls.counts_of(unknown, real)[0], [6, 2, 0, 0])
    np.testing.assert_array_equal(
        controls.counts_of(matched, real), matched.counts(CLASSES, GROUPS)
    )


@SETTINGS
@given(st.integers(1, 500))
def test_a_joint_like_the_real_one_has_the_count_and_the_shares(count):
    real = np.array([[30, 10], [5, 15]])
    joint = controls.counts_like(real, count)
    assert joint.sum() == count
    assert np.abs(joint - real / 60 * count).max() < 1


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


@pytest.mark.parametrize("kind", ["no_synthetic", "fresh_real", "oracle_resample"])
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


def test_matched_images_are_images_that_no_arm_trains_on():
    from selfloop_jax import config as configs
    from selfloop_jax.data import dataset

    data = dataset.load(configs.DataConfig(train_size=500), 0)
    train, held_out = (set(images.source_id.tolist()) for images in (data.train, data.control_pool))
    assert len(train) == 500
    assert not train & held_out
    assert len(held_out) == 360 + 400  # the reserve and what subsampling left of 900
    for split in (data.test, data.validation):
        assert not held_out & set(split.source_id.tolist())


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
