"""Controls: which real images stand in for generated ones, and what a contrast with them means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop_jax import config as configs
from selfloop_jax.data import controls, dataset
from selfloop_jax.data.images import REAL, Images
from selfloop_jax.data.pool_rules import POOL_RULES, PoolRule
from selfloop_jax.errors import UsageError

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


def counts_of(
    kind: str, real: np.ndarray, count: int, key=0, generation=0, rule="replace", images=None
) -> np.ndarray:
    generated = controls.GeneratedSet(generation, count, configs.PoolConfig(rule=rule), images)
    return controls.CONTROLS[kind].counts((key, "counts"), real, generated)


@SETTINGS
@given(st.integers(1, 500), st.integers(0, 50))
def test_fresh_real_has_its_classes_in_proportion_and_its_groups_by_chance(count, key):
    real = np.array([[30, 10, 0], [5, 15, 0], [0, 0, 0]])
    counts = counts_of("fresh_real", real, count, key)
    assert counts.sum() == count
    assert np.abs(counts.sum(axis=1) - np.array([40, 20, 0]) / 60 * count).max() < 1
    assert not counts[real == 0].any()
    np.testing.assert_array_equal(counts, counts_of("fresh_real", real, count, key))


def test_fresh_real_leaves_as_many_subgroups_empty_as_chance_does():
    """A stratified set leaves none empty; a copy machine that draws at random does."""
    real = np.full((10, 10), 4)
    tables = np.array([counts_of("fresh_real", real, 400, key) for key in range(200)])
    shares = tables.reshape(200, -1)
    # Forty draws a class, each of ten groups with the same chance.
    np.testing.assert_allclose(shares.mean(axis=0), 4, atol=0.6)
    assert (shares == 0).mean() == pytest.approx(0.9**40, rel=0.15)
    assert shares.var(axis=0).mean() == pytest.approx(40 * 0.1 * 0.9, rel=0.05)
    assert (counts_of("fresh_real_stratified", real, 400) == 4).all()


def test_a_resample_has_the_counts_of_the_set_it_stands_in_for():
    images = candidates().take(np.arange(0, 72, 5))
    real = np.ones((CLASSES, GROUPS), int)
    counts = counts_of("oracle_resample", real, 99, images=images)
    np.testing.assert_array_equal(counts, images.counts(CLASSES, GROUPS))


@SETTINGS
@given(st.integers(20, 200), st.integers(0, 50))
def test_under_replace_neutral_drift_never_brings_a_lost_subgroup_back(count, key):
    real = np.array([[30, 10, 1], [5, 15, 3], [0, 0, 0]])
    sets = [counts_of("neutral_drift", real, count, key, g) for g in range(6)]
    for counts, before in zip(sets, [real, *sets], strict=False):
        assert counts.sum() == count
        assert not counts[before == 0].any()
        np.testing.assert_array_equal(counts.sum(axis=1), controls.requested(real, count))


def test_neutral_drift_walks_away_under_replace_and_stays_where_real_images_are_kept():
    real = np.full((1, 2), 50)
    scatter = {}
    for rule in ("replace", "real_plus_latest"):
        sets = [counts_of("neutral_drift", real, 40, key, 5, rule)[0, 0] for key in range(300)]
        scatter[rule] = np.var(np.array(sets) / 40)
    # Wright and Fisher: p (1 - p) (1 - (1 - 1/n)^t) after t = 6 samples.
    assert scatter["replace"] == pytest.approx(0.25 * (1 - (1 - 1 / 40) ** 6), rel=0.25)
    s = 40 / 140
    rest = 0.25 / 40 / (1 - s**2 * (1 - 1 / 40))
    assert scatter["real_plus_latest"] == pytest.approx(rest, rel=0.25)


def test_neutral_drift_needs_a_rule_that_says_how_shares_follow(monkeypatch):
    class Opaque(PoolRule):
        pass

    monkeypatch.setitem(POOL_RULES, "opaque", Opaque())
    config = configs.default()
    config.pool.rule = "opaque"
    config.loop.control = "neutral_drift"
    with pytest.raises(UsageError, match=r"^pool\.rule = opaque: must be a rule that says"):
        controls.check(configs.typed(config))


def test_only_a_loop_s_own_doing_is_called_amplification():
    """New real images in addition to the old ones are an advantage that any loop forgoes."""
    for keeps_real in (True, False):
        for kind, control in controls.CONTROLS.items():
            estimand = control.estimand(keeps_real)
            forgone = kind.startswith("fresh_real") and keeps_real
            one_part = kind in ("oracle_resample", "neutral_drift")
            assert (estimand.more == "amplification") == (not forgone and not one_part)
            assert estimand.rises == (estimand.more == "amplification")


def test_a_control_that_would_take_the_reserve_of_its_rule_is_refused():
    config = configs.default()
    config.pool.rule = "fresh"
    config.loop.control = "fresh_real"
    with pytest.raises(UsageError, match=r"^loop\.control = fresh_real: must be none \| no_synth"):
        controls.check(configs.typed(config))


@pytest.mark.parametrize("name", POOL_RULES)
def test_every_rule_is_judged_by_a_control_that_it_goes_with(name):
    config = configs.default()
    config.pool.rule = name
    kind = controls.by_default(POOL_RULES[name].keeps_real)
    config.loop.control = kind
    controls.check(configs.typed(config))
    assert (kind == "fresh_real") == (name in ("replace", "substitute"))


def test_matched_images_are_images_that_no_arm_trains_on():
    data = dataset.load(configs.DataConfig(train_size=500), 0)
    train, held_out = (set(images.source_id.tolist()) for images in (data.train, data.control_pool))
    assert len(train) == 500
    assert not train & held_out
    assert len(held_out) == 360 + 400  # the reserve and what subsampling left of 900
    for split in (data.test, data.validation):
        assert not held_out & set(split.source_id.tolist())
