"""Arms: runs that differ only in their seed, their controls, and intervals over seeds."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from workdirs import GAP, edit, make_arm, make_study, make_workdir, set_metric

from selfloop_jax.analysis import arms
from selfloop_jax.analysis.numbers import FIELD, rows
from selfloop_jax.analysis.runs import read_runs


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return arms.arms(rows(read_runs(make_study(folder))))


def test_runs_that_differ_only_in_their_seed_are_one_arm(study):
    names = [set(arm.name.split(", ")) for arm in study]
    controls = [{"accumulate", "fresh_real"}, {"replace", "fresh_real"}, {"no_synthetic"}]
    assert names == [{"accumulate"}, {"replace"}, *controls]
    assert [len(arm.runs) for arm in study] == [6] * 5
    assert study[0].series(GAP).shape == (6, 3)
    assert study[0].seeds == [0, 1, 2, 3, 4, 5]


def test_a_control_matches_the_config_of_its_loop(study):
    found = arms.control_of(study[1], study, "fresh_real")
    assert found.fields["config.pool.rule"] == "replace"
    assert arms.control_of(study[1], study, "oracle_resample") is None


def test_controls_that_match_no_loop_are_found(study):
    assert arms.without_loop(study) == []
    without_replace = [arm for arm in study if not arm.is_loop or "replace" not in arm.name]
    names = [arm.name for arm in arms.without_loop(without_replace)]
    assert len(names) == 1
    assert "replace" in names[0]
    # Controls alone are shown as what they are: no loop is missing.
    assert arms.without_loop(study[2:]) == []


def test_only_complete_runs_have_all_generations(tmp_path):
    paths = [make_workdir(tmp_path / str(s), generations=3 - s, seed=s) for s in range(2)]
    (arm,) = arms.arms(rows(read_runs(paths)))
    ((first, *others),) = arm.complete_runs
    assert (first["run"], len(others)) == ("0", 2)


def test_no_synthetic_is_a_control_under_every_pool_rule(study):
    assert arms.control_of(study[1], study, "no_synthetic").control == "no_synthetic"


def test_loops_under_several_samplers_share_the_controls_that_have_no_generator(tmp_path):
    paths = []
    for steps, control in ((15, "none"), (15, "fresh_real"), (15, "oracle_resample"), (30, "none")):
        path = make_workdir(tmp_path / f"{control}-{steps}", 2, control=control)
        edit(path / "config.json", lambda config, n=steps: config.update(sample={"steps": n}))
        paths.append(path)
    every = arms.arms(rows(read_runs(paths)))
    short, long = (arm for arm in every if arm.is_loop)
    for loop in (short, long):
        assert arms.control_of(loop, every, "fresh_real") is not None
    # This one has the shares of what one of the loops generated.
    assert arms.control_of(short, every, "oracle_resample") is not None
    assert arms.control_of(long, every, "oracle_resample") is None
    assert arms.without_loop(every) == []
    # Named after nothing that it does not depend on.
    assert "steps" not in arms.control_of(long, every, "fresh_real").name


def test_of_several_controls_that_match_the_one_with_the_loop_s_seeds_counts(tmp_path):
    paths = []
    for steps, control, seeds in ((15, "none", 3), (15, "fresh_real", 1), (30, "fresh_real", 3)):
        for seed in range(seeds):
            path = make_workdir(tmp_path / f"{control}-{steps}-{seed}", 2, seed, control=control)
            edit(path / "config.json", lambda config, n=steps: config.update(sample={"steps": n}))
            paths.append(path)
    every = arms.arms(rows(read_runs(paths)))
    assert arms.control_of(every[0], every, "fresh_real").seeds == [0, 1, 2]


def test_the_interval_over_seeds_is_student_t(study):
    values = study[0].series(GAP)[:, 2]
    low, high = study[0].interval(GAP)
    sem = values.std(ddof=1) / np.sqrt(6)
    expected = stats.t.interval(0.95, 5, values.mean(), sem)
    np.testing.assert_allclose([low[2], high[2]], expected)


def test_the_interval_of_one_run_is_the_recorded_one(tmp_path):
    workdir = make_workdir(tmp_path / "run", 2)
    (arm,) = arms.arms(rows(read_runs([workdir])))
    low, high = arm.interval("accuracy")
    np.testing.assert_allclose(low, [0.85, 0.75])
    np.testing.assert_allclose(high, [0.95, 0.85])


def test_two_seeds_have_no_interval(tmp_path):
    paths = make_arm(tmp_path, "replace", "none", 0.0, seeds=range(2))
    (arm,) = arms.arms(rows(read_runs(paths)))
    assert np.isnan(arm.interval(GAP)).all()


def test_the_mean_is_over_the_seeds_that_have_the_number(tmp_path):
    paths = make_arm(tmp_path, "replace", "none", 0.0, seeds=range(3), generations=2)
    set_metric(paths[0], 0, "cas", 0.5)
    set_metric(paths[1], 0, "cas", 0.7)
    (arm,) = arms.arms(rows(read_runs(paths)))
    np.testing.assert_allclose(arm.mean("cas"), [0.6, np.nan])


def test_the_longest_run_of_a_seed_counts(tmp_path):
    paths = [make_workdir(tmp_path / name, n, seed=0) for name, n in (("a", 1), ("b", 2), ("c", 2))]
    (arm,) = arms.arms(rows(read_runs(paths)))
    assert list(arm.runs) == ["b"]


def test_names_show_numbers_with_their_field(tmp_path):
    paths = [make_workdir(tmp_path / rule, 1, rule=rule) for rule in ("0.5", "replace")]
    names = [arm.name for arm in arms.arms(rows(read_runs(paths)))]
    assert names == ["rule 0.5", "replace"]


def test_names_say_which_of_two_fields_of_one_last_word_is_meant(tmp_path):
    (arm,) = arms.arms(rows(read_runs([make_workdir(tmp_path / "run", 1)])))
    steps = {f"{FIELD}{name}.later.steps": "600" for name in ("diffusion", "classifier")}
    shown = replace(arm, fields=steps | {f"{FIELD}data.bias.rho": "0.5"}).name
    assert shown == "diffusion.later.steps 600, classifier.later.steps 600, rho 0.5"
