"""Verdicts over the seeds of loops and controls whose courses are known, and of placebos."""

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


def pair(folder, rule, control, loop_slope, control_slope) -> verdicts.Finding:
    loop = make_arm(folder, rule, "none", loop_slope)
    return findings([*loop, *make_arm(folder, rule, control, control_slope)])[0]


def test_each_loop_is_judged_by_the_control_that_its_rule_asks_for(study):
    accumulate, replace, *others = findings(study)
    assert (accumulate.arm.name, accumulate.control) == ("accumulate", "no_synthetic")
    assert accumulate.estimand.name == "inclusion"
    assert accumulate.verdict == "amplification"
    assert accumulate.contrast.mean == pytest.approx(0.2)
    assert accumulate.contrast.p == accumulate.p_beyond == 2 / 64
    assert accumulate.first.mean == pytest.approx(0.1)
    assert accumulate.later.mean == pytest.approx(0.1)
    assert (replace.control, replace.estimand.name) == ("fresh_real", "substitution")
    assert replace.verdict == "no change"
    assert [finding.planned for finding in others] == [False] * len(others)
    asked = {(finding.arm.name, finding.estimand.name) for finding in others}
    assert asked == {("accumulate", "forgone real data"), ("replace", "replacement")}


def test_a_falling_gap_is_attenuation(tmp_path):
    assert pair(tmp_path, "replace", "fresh_real", -0.05, 0.0).verdict == "attenuation"


def test_a_gap_that_does_not_rise_is_no_amplification_however_far_the_control_falls(tmp_path):
    found = pair(tmp_path, "replace", "fresh_real", -0.02, -0.1)
    assert found.contrast.p <= 0.05
    assert found.verdict == "harm"
    assert "but since generation 0 the loop changed by" in found.reason


def test_real_images_that_help_more_are_called_so(tmp_path):
    found = pair(tmp_path, "accumulate", "fresh_real", 0.05, -0.05)
    assert found.estimand.name == "forgone real data"
    assert found.verdict == "real images help more"


def test_a_change_that_does_not_exceed_the_margin_is_undecided(tmp_path):
    loop = make_arm(tmp_path, "replace", "none", 0.01, seeds=range(3))
    loop += make_arm(tmp_path, "replace", "none", 0.05, seeds=range(3, 6))
    (found,) = findings([*loop, *make_arm(tmp_path, "replace", "fresh_real", 0.0)])
    assert found.contrast.p <= 0.05
    assert found.contrast.mean == pytest.approx(0.06)
    assert found.verdict == "undecided"
    assert "not shown to exceed the margin of 0.05" in found.reason


def test_a_margin_can_be_a_share_of_the_first_gap(tmp_path):
    loop = make_arm(tmp_path, "replace", "none", 0.02)
    control = make_arm(tmp_path, "replace", "fresh_real", 0.0)
    for margin, verdict in ((0.5, "no change"), (0.1, "amplification")):
        for workdir in (*loop, *control):
            changes = {"margin": margin, "relative_margin": True}
            edit(workdir / "config.json", lambda c, new=changes: c["verdict"].update(new))
        (found,) = findings([*loop, *control])
        assert found.margin == pytest.approx(margin * 0.2)
        assert found.verdict == verdict


def test_a_falling_ratio_is_amplification(tmp_path):
    ratio = "disparate_impact_ratio_mean"
    workdirs = []
    for control, slope in (("none", -0.1), ("fresh_real", 0.0)):
        for workdir in make_arm(tmp_path, "replace", control, 0.0):
            edit(workdir / "config.json", lambda c: c["verdict"].update(metrics=[ratio]))
            for g in range(3):
                scatter = 0.001 * g * int(workdir.name[-1])
                set_metric(workdir, g, ratio, 0.9 + slope * g - scatter)
            workdirs.append(workdir)
    assert findings(workdirs)[0].verdict == "amplification"


def test_a_gap_above_its_null_leaves_out_what_noise_adds(tmp_path):
    loop = make_arm(tmp_path, "replace", "none", 0.1)
    control = make_arm(tmp_path, "replace", "fresh_real", 0.0)
    for workdir in loop:
        seed = int(workdir.name[-1])
        for g in range(3):
            value = 0.2 + g * (0.1 + 0.003 * (seed - 2.5))
            set_metric(workdir, g, GAP, value, null=[0, 0.1 + 0.06 * g, 1], p=0.1)
    for workdir in control:
        for g in range(3):
            seed = int(workdir.name[-1])
            value = 0.2 + g * 0.003 * (seed - 2.5)
            set_metric(workdir, g, GAP, value, null=[0, 0.1, 1], p=0.1)
    (found,) = findings([*loop, *control])
    assert found.contrast.mean == pytest.approx(0.2)
    assert found.above_null == pytest.approx(0.2 - 0.12)


def test_loops_without_their_control_are_not_tested_and_named(study):
    loops = arms.arms(rows(read_runs(study[:12])))
    assert verdicts.findings(loops) == []
    lacking = [(arm.name, kind) for arm, kind in verdicts.without_control(loops)]
    assert lacking == [("accumulate", "no_synthetic"), ("replace", "fresh_real")]


def test_few_seeds_decide_nothing(study):
    few = [path for path in study if path.name[-1] in "012"]
    found = findings(few)
    assert {one.verdict for one in found} == {"undecided"}
    assert "3 seeds: at least 6 are needed" in found[0].reason


def test_a_seed_without_its_control_is_dropped(study):
    kept = [path for path in study if path.name != "no_synthetic-accumulate-5"]
    found = findings(kept)[0]
    assert found.dropped == 1
    assert found.reason.endswith("; 1 seed without a value was left out.")


def test_the_simultaneous_interval_is_wider_and_of_one_test_its_own(study, tmp_path):
    for found in findings(study):
        low, high = found.simultaneous
        assert low <= found.contrast.low <= found.contrast.high <= high
    alone = pair(tmp_path, "replace", "fresh_real", 0.1, 0.0)
    assert alone.family == 1
    assert alone.simultaneous == pytest.approx((alone.contrast.low, alone.contrast.high))


def test_an_undecided_contrast_says_how_many_seeds_it_needs(tmp_path):
    loop = make_arm(tmp_path, "replace", "none", 0.01, seeds=range(3))
    loop += make_arm(tmp_path, "replace", "none", 0.05, seeds=range(3, 6))
    (found,) = findings([*loop, *make_arm(tmp_path, "replace", "fresh_real", 0.0)])
    # 0.01 from the margin with a scatter of 0.044: more than two hundred.
    assert found.seeds_needed == float("inf")


def test_a_control_of_another_version_is_named_and_still_tested(tmp_path):
    loop = make_arm(tmp_path, "replace", "none", 0.1)
    control = make_arm(tmp_path, "replace", "fresh_real", 0.0)
    for workdir in control:
        for g in range(3):
            edit(workdir / f"gen_{g:04d}" / "record.json", lambda r: r.update(version="0.1.9"))
    (found,) = findings([*loop, *control])
    assert found.verdict == "amplification"
    assert "the control is of another version of the program (0.1.9, not 0.2.0)" in found.reason


def test_a_metric_of_unknown_direction_is_refused(tmp_path):
    loop = make_arm(tmp_path, "accumulate", "none", 0.1, seeds=range(1))
    control = make_arm(tmp_path, "accumulate", "no_synthetic", 0.0, seeds=range(1))
    for workdir in (*loop, *control):
        edit(workdir / "config.json", lambda c: c["verdict"].update(metrics=[GAP, "mine"]))
    with pytest.raises(UsageError, match=r"verdict\.metrics: 'mine' is not in METRICS"):
        findings([*loop, *control])
