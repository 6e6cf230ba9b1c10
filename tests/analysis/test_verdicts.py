"""Verdicts over the seeds of loops and controls whose courses are known."""

import pytest
from workdirs import GAP, edit, make_arm, make_study, set_metric

from selfloop_jax.analysis import arms, verdicts
from selfloop_jax.analysis.numbers import rows
from selfloop_jax.analysis.runs import read_runs
from selfloop_jax.errors import UsageError


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


def findings(workdirs) -> list[verdicts.Finding]:
    return verdicts.findings(arms.arms(rows(read_runs(workdirs))))


def test_each_loop_is_tested_against_its_planned_control(study):
    accumulate, replace = findings(study)
    assert (accumulate.arm.name, accumulate.control) == ("accumulate", "fresh_real")
    assert accumulate.result["verdict"] == "amplification"
    assert accumulate.result["mean"] == pytest.approx(0.2)
    assert accumulate.result["p"] == 2 / 64
    assert replace.result["verdict"] == "no change"


def test_a_falling_gap_is_attenuation(tmp_path):
    loop = make_arm(tmp_path, "accumulate", "none", -0.05)
    control = make_arm(tmp_path, "accumulate", "fresh_real", 0.0)
    assert findings([*loop, *control])[0].result["verdict"] == "attenuation"


def test_a_falling_ratio_is_amplification(tmp_path):
    ratio = "disparate_impact_ratio_mean"
    workdirs = []
    for control, slope in (("none", -0.1), ("fresh_real", 0.0)):
        for workdir in make_arm(tmp_path, "accumulate", control, 0.0):
            edit(workdir / "config.json", lambda c: c["verdict"].update(metrics=[ratio]))
            for g in range(3):
                scatter = 0.001 * g * int(workdir.name[-1])
                set_metric(workdir, g, ratio, 0.9 + slope * g - scatter)
            workdirs.append(workdir)
    assert findings(workdirs)[0].result["verdict"] == "amplification"


def test_loops_without_their_control_are_not_tested(study):
    assert findings(study[:12]) == []


def test_few_seeds_are_not_distinguishable(study):
    few = [path for path in study if path.name[-1] in "012"]
    found = findings(few)
    assert {one.result["verdict"] for one in found} == {"not distinguishable"}
    assert "3 seeds" in found[0].result["reason"]


def test_a_seed_without_its_control_is_dropped(study):
    kept = [path for path in study if path.name != "fresh_real-accumulate-5"]
    result = findings(kept)[0].result
    assert (result["seeds"], result["dropped"]) == (5, 1)


def test_a_metric_of_unknown_direction_is_refused(tmp_path):
    loop = make_arm(tmp_path, "accumulate", "none", 0.1, seeds=range(1))
    control = make_arm(tmp_path, "accumulate", "fresh_real", 0.0, seeds=range(1))
    for workdir in (*loop, *control):
        edit(workdir / "config.json", lambda c: c["verdict"].update(metrics=[GAP, "mine"]))
    with pytest.raises(UsageError, match=r"verdict\.metrics: 'mine' is not in METRICS"):
        findings([*loop, *control])
