"""The pool rules: sizes, contents, random draws by key path, the origin of every image."""

import copy
import dataclasses

import numpy as np
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selfloop_jax.config import Config, LoopConfig, PoolConfig
from selfloop_jax.data import pool_rules
from selfloop_jax.data.images import REAL, Images
from selfloop_jax.errors import UsageError
from selfloop_jax.measure import dynamics

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


KEY_PATH = (0, "pool")


CLASSES, GROUPS = 3, 2


N_REAL, N_RESERVE, COUNT = 60, 48, 90


COLUMNS = ("pixels", "label", "group", "origin", "id")


RULES = {
    "replace": {},
    "real_plus_latest": {},
    "accumulate": {},
    "accumulate_subsample": {"budget": 40},
    "substitute": {"alpha": 0.5},
    "fresh": {"n_real": 12, "n_generated": 30},
}


# Sizes at g > 0, from the papers: n_r real images, n_s generated per generation.
SIZES = {
    "replace": lambda g: COUNT,
    "real_plus_latest": lambda g: N_REAL + COUNT,
    "accumulate": lambda g: N_REAL + g * COUNT,
    "accumulate_subsample": lambda g: 40,
    "substitute": lambda g: N_REAL,
    "fresh": lambda g: 12 + 30,
}


def section(rule, **values):
    return PoolConfig(**({"rule": rule} | RULES[rule] | values))


def images(n, origin, first=0, **columns):
    """n images whose pixels tell origin and id; classes in turn, groups in pairs of rounds."""
    ids = first + np.arange(n, dtype=np.uint32)
    code = np.stack([ids % 251, ids // 251, np.full(n, origin + 1)], axis=1)
    made = {
        "pixels": np.broadcast_to(code[:, None, None, :], (n, 2, 2, 3)).astype(np.uint8),
        "label": (np.arange(n) % CLASSES).astype(np.int32),
        "group": (np.arange(n) // CLASSES % GROUPS).astype(np.int32),
        "origin": np.full(n, origin, np.int32),
        "id": ids,
    }
    return Images(**(made | columns))


def real_images(n=N_REAL):
    return images(n, REAL, source_id=np.arange(n, dtype=np.uint32))


def reserve_images(n=N_RESERVE):
    return images(n, REAL, first=1000, source_id=1000 + np.arange(n, dtype=np.uint32))


def generated_by(g, n=COUNT, relabel=True):
    """Returns generated images of generation g; some labels differ from the requested ones."""
    whole = images(n, g)
    asked = whole.label.copy()
    label = np.where(relabel & (np.arange(n) % 7 == 0), (asked + 1) % CLASSES, asked).astype(
        np.int32
    )
    return dataclasses.replace(whole, label=label, requested_label=asked)


def build(rules, g, key_path=KEY_PATH, real=None, reserve=None, generated=None):
    needed = [generated_by(i) for i in pool_rules.source_generations(rules, g)]
    return pool_rules.build(
        rules, key_path, g, real or real_images(), reserve or reserve_images(), generated or needed
    )


def identities(part):
    return list(zip(part.origin.tolist(), part.id.tolist(), strict=True))


def assert_same(one, other):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("g", range(5))
def test_sizes_are_those_of_the_papers(rule, g):
    expected = SIZES[rule](g) if g or rule == "accumulate_subsample" else N_REAL
    assert pool_rules.capacity(section(rule), g, N_REAL, COUNT) == expected
    assert len(build(section(rule), g)) == expected


@pytest.mark.parametrize("rule", RULES)
def test_generation_0_is_real_data_only(rule):
    assert list(pool_rules.source_generations(section(rule), 0)) == []
    first = build(section(rule), 0)
    assert (first.origin == REAL).all()
    if rule != "accumulate_subsample":
        assert_same(first, real_images())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [(rule, [0, 1, 2] if rule.startswith("accumulate") else [2]) for rule in RULES],
)
def test_needs_names_the_generations_that_a_pool_is_made_from(rule, expected):
    assert list(pool_rules.source_generations(section(rule), 3)) == expected


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("g", range(4))
def test_every_image_of_a_pool_is_one_of_those_given_and_comes_once(rule, g):
    built = build(section(rule), g)
    sources = [real_images(), reserve_images(), *(generated_by(i) for i in range(4))]
    rows = {name: [] for name in COLUMNS}
    for source in sources:
        for name in COLUMNS:
            rows[name].extend(getattr(source, name))
    place = {
        identity: row for row, identity in enumerate(i for s in sources for i in identities(s))
    }
    found = [place[identity] for identity in identities(built)]
    assert len(set(found)) == len(found)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(built, name), np.array(rows[name])[found])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("g", [0, 3])
def test_building_is_pure(rule, g):
    real, reserve = real_images(), reserve_images()
    generated = [generated_by(i) for i in pool_rules.source_generations(section(rule), g)]
    before = copy.deepcopy((real, reserve, *generated))
    first = pool_rules.build(section(rule), KEY_PATH, g, real, reserve, generated)
    pool_rules.build(section(rule), (1, "pool"), g, real, reserve, generated)
    again = pool_rules.build(section(rule), KEY_PATH, g, real, reserve, generated)
    assert_same(first, again)
    for part, kept in zip((real, reserve, *generated), before, strict=True):
        assert_same(part, kept)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("replace", lambda: [generated_by(2)]),
        ("real_plus_latest", lambda: [real_images(), generated_by(2)]),
        ("accumulate", lambda: [real_images(), generated_by(0), generated_by(1), generated_by(2)]),
    ],
)
def test_plain_rules_set_whole_sets_one_after_the_other(rule, expected):
    built = build(section(rule), 3)
    assert identities(built) == [identity for part in expected() for identity in identities(part)]


@pytest.mark.parametrize("g", range(4))
def test_a_subsample_is_keyed_by_run_and_generation(g):
    rules = section("accumulate_subsample")
    everything = build(section("accumulate"), g)
    built = build(rules, g)
    assert set(identities(built)) < set(identities(everything))
    assert identities(built) != identities(build(rules, g, key_path=(1, "pool")))
    generated = [generated_by(i) for i in range(4)]
    at_g = pool_rules.build(rules, KEY_PATH, g, real_images(), reserve_images(), generated)
    at_next = pool_rules.build(rules, KEY_PATH, g + 1, real_images(), reserve_images(), generated)
    assert identities(at_g) != identities(at_next)


def test_every_image_is_equally_likely_to_be_kept():
    rules = section("accumulate_subsample", budget=20)
    counts = np.zeros(N_REAL, int)
    for seed in range(300):
        counts[build(rules, 0, key_path=(seed, "pool")).id] += 1
    assert counts.sum() == 300 * 20
    # without replacement the counts vary less than a chi-square's: (1 - 20 / 60) of its mean
    statistic = ((counts - 100) ** 2 / 100).sum() / (1 - 20 / N_REAL)
    assert 1e-3 < stats.chi2.sf(statistic, N_REAL - 1) < 1 - 1e-3


def test_a_subsample_of_everything_is_everything():
    rules = section("accumulate_subsample", budget=N_REAL + 2 * COUNT)
    assert_same(build(rules, 2), build(section("accumulate"), 2))


def test_a_subsample_of_more_than_everything_is_refused():
    with pytest.raises(UsageError, match=r"^pool\.budget = 61: must be at most 60, "):
        build(section("accumulate_subsample", budget=61), 0)


@SETTINGS
@given(st.floats(0, 1), st.floats(0, 1), st.booleans(), st.integers(0, 9))
def test_substituted_sets_and_their_substitutes_are_nested_in_alpha(one, other, match_group, seed):
    low, high = (
        build(
            section("substitute", alpha=alpha, match_group=match_group), 1, key_path=(seed, "pool")
        )
        for alpha in sorted((one, other))
    )
    swapped = low.origin != REAL
    assert (high.origin[swapped] != REAL).all()
    assert_same(low.take(swapped), high.take(swapped))


@SETTINGS
@given(st.floats(0, 1), st.booleans(), st.integers(0, 9))
def test_a_substitute_was_requested_under_the_label_of_the_image_it_replaces(
    alpha, match_group, seed
):
    real, latest = real_images(), generated_by(0)
    built = build(
        section("substitute", alpha=alpha, match_group=match_group), 1, key_path=(seed, "pool")
    )
    swapped = built.origin != REAL
    stand_ins = built.id[swapped]
    np.testing.assert_array_equal(latest.requested_label[stand_ins], real.label[swapped])
    np.testing.assert_array_equal(built.label[swapped], latest.label[stand_ins])
    assert_same(built.take(~swapped), real.take(~swapped))


@SETTINGS
@given(st.floats(0, 1), st.integers(0, 9))
def test_match_group_keeps_the_composition_of_groups(alpha, seed):
    rules = section("substitute", alpha=alpha, match_group=True)
    latest = generated_by(0, relabel=False)
    built = build(rules, 1, key_path=(seed, "pool"), generated=[latest])
    np.testing.assert_array_equal(built.group, real_images().group)
    np.testing.assert_array_equal(
        built.counts(CLASSES, GROUPS), real_images().counts(CLASSES, GROUPS)
    )


def test_without_match_group_the_group_is_whatever_was_generated():
    one_group = dataclasses.replace(generated_by(0), group=np.ones(COUNT, np.int32))
    built = build(section("substitute", alpha=1.0), 1, generated=[one_group])
    assert (built.group == 1).all()


@pytest.mark.parametrize("match_group", [False, True])
def test_unknown_groups_are_matched_with_unknown_groups(match_group):
    real = dataclasses.replace(
        real_images(), group=np.where(np.arange(N_REAL) < 6, -1, 0).astype(np.int32)
    )
    latest = dataclasses.replace(
        generated_by(0), group=np.where(np.arange(COUNT) < 9, -1, 0).astype(np.int32)
    )
    rules = section("substitute", alpha=1.0, match_group=match_group)
    built = build(rules, 1, real=real, generated=[latest])
    assert (built.group == real.group).all() == match_group


@pytest.mark.parametrize("match_group", [False, True])
def test_alpha_0_swaps_nothing_and_alpha_1_everything(match_group):
    nothing, everything = (
        build(section("substitute", alpha=alpha, match_group=match_group), 2)
        for alpha in (0.0, 1.0)
    )
    assert_same(nothing, real_images())
    assert (everything.origin == 1).all()
    assert len(set(everything.id.tolist())) == N_REAL


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_alpha_is_the_share_that_is_swapped(alpha):
    n = 3000
    built = build(
        section("substitute", alpha=alpha), 1, real=real_images(n), generated=[generated_by(0, n)]
    )
    swapped = (built.origin != REAL).sum()
    assert abs(swapped - n * alpha) < 4.5 * np.sqrt(n * alpha * (1 - alpha))


@SETTINGS
@given(st.permutations(range(N_REAL)))
def test_what_is_swapped_hangs_on_ids_not_on_places(order):
    rules = section("substitute", alpha=0.4)
    shuffled = build(rules, 1, real=real_images().take(np.array(order)))
    assert_same(shuffled, build(rules, 1).take(np.array(order)))


def test_the_same_images_are_swapped_in_every_generation_and_others_in_another_run():
    rules = section("substitute", alpha=0.4)
    swapped = [build(rules, g).origin != REAL for g in (1, 2, 3)]
    np.testing.assert_array_equal(swapped[0], swapped[1])
    np.testing.assert_array_equal(swapped[0], swapped[2])
    assert (swapped[0] != (build(rules, 1, key_path=(1, "pool")).origin != REAL)).any()


def test_substitutes_are_sampled_anew_in_every_generation():
    one, other = (build(section("substitute", alpha=1.0), g) for g in (1, 2))
    assert (one.id != other.id).any()


@pytest.mark.parametrize(
    ("match_group", "short"),
    [
        (False, lambda whole: whole.take(whole.requested_label != 1)),
        (False, lambda whole: whole.take(np.arange(N_REAL - 3))),
        (True, lambda whole: whole.take((whole.requested_label != 1) | (whole.group != 0))),
    ],
    ids=["a class is missing", "one too few of each class", "a subgroup is missing"],
)
def test_a_shortage_of_substitutes_is_refused(match_group, short):
    rules = section("substitute", alpha=1.0, match_group=match_group)
    with pytest.raises(
        UsageError, match=r"^pool\.alpha = 1\.0: .* were generated; raise sample\.count"
    ):
        build(rules, 1, generated=[short(generated_by(0))])


def test_exactly_enough_substitutes_are_enough():
    latest = generated_by(0, N_REAL, relabel=False)
    built = build(section("substitute", alpha=1.0, match_group=True), 1, generated=[latest])
    assert set(identities(built)) == set(identities(latest))


def test_no_reserve_image_serves_two_generations():
    rules = section("fresh")
    parts = [build(rules, g) for g in range(1, 5)]
    real = [identities(part.take(part.origin == REAL)) for part in parts]
    assert [len(part) for part in real] == [12] * 4
    assert len(set().union(*real)) == N_RESERVE  # 4 x 12: the whole reserve, each image once
    assert set().union(*real) == set(identities(reserve_images()))


def test_fresh_draws_its_generated_part_without_replacement_from_the_latest():
    built = build(section("fresh"), 3)
    generated = built.take(built.origin != REAL)
    assert (generated.origin == 2).all()
    assert len(set(generated.id.tolist())) == len(generated) == 30


def test_fresh_is_keyed_by_the_run():
    one, other = (build(section("fresh"), 1, key_path=(seed, "pool")) for seed in (0, 1))
    for origin in (REAL, 0):
        ids = [part.id[part.origin == origin] for part in (one, other)]
        assert (ids[0] != ids[1]).any()


@pytest.mark.parametrize(("n_real", "n_generated"), [(12, 0), (0, 30)])
def test_fresh_can_be_all_real_or_all_generated(n_real, n_generated):
    built = build(section("fresh", n_real=n_real, n_generated=n_generated), 2)
    assert (built.origin == REAL).sum() == n_real
    assert (built.origin == 1).sum() == n_generated


@pytest.mark.parametrize(
    ("values", "g", "message"),
    [
        (
            {"n_real": 12},
            5,
            r"^pool\.n_real = 12: generation 5 needs 60 images, but the reserve has 48",
        ),
        (
            {"n_real": 49},
            1,
            r"^pool\.n_real = 49: generation 1 needs 49 images, but the reserve has 48",
        ),
        ({"n_generated": 91}, 1, r"^pool\.n_generated = 91: must be at most 90, "),
    ],
)
def test_a_shortage_for_fresh_is_refused(values, g, message):
    with pytest.raises(UsageError, match=message):
        build(section("fresh", **values), g)


def check(rules, generations=5, count=COUNT):
    pool_rules.check_data(rules, KEY_PATH, generations, real_images(), N_RESERVE, count)


def test_the_check_refuses_to_substitute_more_images_than_are_generated():
    with pytest.raises(
        UsageError, match=r"^pool\.alpha = 1\.0: .* sample\.count = 59 images, not 60$"
    ):
        check(section("substitute", alpha=1.0), count=59)
    check(section("substitute", alpha=1.0), count=60)


@pytest.mark.parametrize(
    ("rule", "values", "field"),
    [
        ("accumulate_subsample", {"budget": 0}, "pool.budget = 0"),
        ("accumulate_subsample", {"budget": -1}, "pool.budget = -1"),
        ("accumulate_subsample", {"budget": N_REAL + 1}, "pool.budget = 61"),
        ("fresh", {"n_real": 13}, "pool.n_real = 13"),
        ("fresh", {"n_real": -1}, "pool.n_real = -1"),
        ("fresh", {"n_generated": COUNT + 1}, "pool.n_generated = 91"),
        ("fresh", {"n_generated": -1}, "pool.n_generated = -1"),
        ("fresh", {"n_real": 0, "n_generated": 0}, "pool.n_generated = 0"),
    ],
)
def test_the_check_refuses_what_a_run_could_not_build(rule, values, field):
    with pytest.raises(UsageError, match=rf"^{field}: "):
        check(section(rule, **values))


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        *((rule, {}) for rule in RULES),
        ("accumulate_subsample", {"budget": N_REAL}),
        ("accumulate_subsample", {"budget": 1}),
        ("fresh", {"n_real": 12, "n_generated": COUNT}),
    ],
)
def test_what_the_check_passes_can_be_built(rule, values):
    rules = section(rule, **values)
    check(rules)
    for g in range(5):
        assert len(build(rules, g)) == pool_rules.capacity(rules, g, N_REAL, COUNT)


def test_what_fresh_has_served_is_no_longer_held_out():
    asked, reserve = section("fresh"), images(N_RESERVE, REAL, first=1000)
    real, latest = real_images(), images(COUNT, 0)
    left = pool_rules.unused_reserve(asked, KEY_PATH, reserve, 2)
    served = [pool_rules.build(asked, KEY_PATH, g, real, reserve, [latest]) for g in (1, 2)]
    taken = {int(i) for one in served for i in one.id[one.origin == REAL]}
    assert taken | set(left.id.tolist()) == set(reserve.id.tolist())
    assert not taken & set(left.id.tolist())
    assert pool_rules.unused_reserve(section("accumulate"), KEY_PATH, reserve, 2) is reserve


class Alternate(pool_rules.PoolRule):
    """A rule from outside: the real images and the latest ones by turns."""

    def capacity(self, section, g, real, count):
        return real if g % 2 else count

    def build(self, parts):
        return parts.real if parts.g % 2 else parts.latest

    def check_sizes(self, section, generations, real, reserve, count):
        if count < real:
            raise UsageError(f"sample.count = {count}: must be at least {real}")

    def expected_share(self, shares):
        return np.asarray(shares.real if shares.g % 2 else shares.latest)


@pytest.fixture
def alternate(monkeypatch):
    monkeypatch.setitem(pool_rules.POOL_RULES, "alternate", Alternate())
    return PoolConfig("alternate")


def test_a_rule_from_outside_builds_pools(alternate):
    with_rule = Config(pool=alternate, loop=LoopConfig(control="fresh_real"))
    pool_rules.check(with_rule)
    assert [pool_rules.capacity(alternate, g, N_REAL, COUNT) for g in range(4)] == [60, 60, 90, 60]
    assert list(pool_rules.source_generations(alternate, 3)) == [2]
    assert_same(build(alternate, 0), real_images())
    assert_same(build(alternate, 1), real_images())
    assert_same(build(alternate, 2), generated_by(1))
    with pytest.raises(UsageError, match=r"^sample\.count = 59: must be at least 60$"):
        check(alternate, count=59)


class FewReal(pool_rules.PoolRule):
    """The first five real images, and no generated ones."""

    def sources(self, g):
        return range(0)

    def capacity(self, section, g, real, count):
        return 5

    def build(self, parts):
        assert not parts.generated
        return parts.real.take(slice(5))


def test_a_rule_that_takes_no_generated_images_builds_its_pools(monkeypatch):
    monkeypatch.setitem(pool_rules.POOL_RULES, "few_real", FewReal())
    few = PoolConfig("few_real")
    assert [len(build(few, g)) for g in range(3)] == [N_REAL, 5, 5]
    without = pool_rules.build(few, KEY_PATH, 1, real_images(), reserve_images(), None)
    assert_same(without, real_images())  # a control without generated images


@pytest.mark.parametrize("rule", RULES)
def test_a_control_without_generated_images_has_the_real_ones_or_a_subset(rule):
    made = pool_rules.build(section(rule), KEY_PATH, 2, real_images(), reserve_images(), None)
    assert len(made) == pool_rules.capacity(section(rule), 0, N_REAL, COUNT)
    assert set(identities(made)) <= set(identities(real_images()))


def test_a_rule_from_outside_is_forecast(alternate):
    copy = dynamics.Response(np.array([0.0, 1.0]), np.zeros((2, 2)))
    loop = dynamics.Loop(alternate, 0.7, pool_rules.Sizes(60, 90), copy)
    pools, generated = dynamics.predict(loop, 4, (0, "forecast"), first=0.9)
    np.testing.assert_allclose(pools.mean, [0.7, 0.7, 0.7, 0.7])
    np.testing.assert_allclose(generated.mean, [0.9, 0.7, 0.7, 0.7])
    assert (pools.low[2], pools.high[3]) < (0.7, 0.7 + 1e-9)


def test_a_rule_from_outside_without_shares_is_not_forecast(monkeypatch):
    class Plain(pool_rules.PoolRule):
        pass

    assert not Plain().predictable
    assert all(rule.predictable for rule in pool_rules.POOL_RULES.values())


def test_an_unknown_rule_is_refused():
    with pytest.raises(UsageError, match=r"^pool\.rule = mix: must be one of replace \| "):
        pool_rules.check(Config(pool=PoolConfig("mix")))


def test_a_config_file_of_a_user_adds_a_rule(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USER_CONFIG)
    shown = runs.main(f"--config={path}", "--dry_run", *runs.SHRUNK)
    assert shown.returncode == 0, shown.stderr
    assert "pool sizes, generation 0 on: 900, 900, 200\n" in shown.stdout


USER_CONFIG = """
from selfloop_jax.data.pool_rules import POOL_RULES, PoolRule
from selfloop_jax import config as configs


class Alternate(PoolRule):
    def capacity(self, section, g, real, count):
        return real if g % 2 else count

    def build(self, parts):
        return parts.real if parts.g % 2 else parts.latest


POOL_RULES["alternate"] = Alternate()


def get_config(_=""):
    config = configs.default()
    config.pool.rule = "alternate"
    return config
"""
