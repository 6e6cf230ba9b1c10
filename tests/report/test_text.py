"""The sentences at the top of the page."""

import shutil
from pathlib import Path

from workdirs import GAP, edit, edit_record, make_arm, make_workdir, set_metric

from selfloop_jax.analysis import arms, numbers, verdicts
from selfloop_jax.analysis.runs import read_run
from selfloop_jax.report.text import caveats, summary, title


def summary_of(*workdirs: Path) -> str:
    runs = [read_run(workdir) for workdir in workdirs]
    every = arms.arms(numbers.rows(runs))
    return " ".join(summary(runs, every, verdicts.findings(every)))


def test_summary_of_one_run_names_its_ends_and_its_limits(tmp_path):
    text = summary_of(make_workdir(tmp_path / "run"))
    assert "From generation 0 (trained on real images only) to generation 2: " in text
    assert "accuracy 0.900 to 0.700;" in text
    assert "would lie between 0.100 and 0.300 with probability 0.9; it is 0.700 (p = 0.001)" in text
    assert "a single run with one seed" in text


def test_summary_mentions_a_non_monotonic_generation(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    set_metric(workdir, 1, "accuracy", 0.25)
    assert "accuracy 0.900 to 0.700 (0.250 in generation 1)" in summary_of(workdir)


def test_summary_leaves_out_undefined_ends(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    set_metric(workdir, 2, "accuracy", None)
    assert "accuracy 0.900" not in summary_of(workdir).replace("subgroup accuracy", "")


def test_summary_of_one_generation_shows_no_trend(tmp_path):
    text = summary_of(make_workdir(tmp_path / "run", generations=1))
    assert "In generation 0: accuracy 0.900" in text
    assert "it shows no trend" in text


def test_summary_without_generation_0_starts_later(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    shutil.rmtree(workdir / "gen_0000")
    assert "From generation 1 to generation 2" in summary_of(workdir)


def test_summary_of_seeds_gives_their_range(tmp_path):
    text = summary_of(*(make_workdir(tmp_path / str(seed), seed=seed) for seed in (0, 1)))
    assert "accuracy between 0.690 and 0.700" in text
    assert "differ only in the seed" in text
    lacking = "No matching control of the kind no_synthetic, so no change is tested."
    assert f"Undecided: all runs. {lacking}" in text


def test_summary_of_a_tested_study_is_its_verdicts(tmp_path):
    loop = make_arm(tmp_path, "accumulate", "none", 0.1)
    control = make_arm(tmp_path, "accumulate", "no_synthetic", 0.0)
    text = summary_of(*loop, *control)
    asked = (
        "Inclusion (what generated images do in addition to the real ones, for as many training "
        "steps), mean equal opportunity difference, against no_synthetic."
    )
    numbers = "loop +0.200 [+0.200, +0.200], 6 seeds, joint p = 0.031."
    assert text == f"{asked} Amplification: {numbers}"


def test_summary_of_few_seeds_says_how_many_are_needed(tmp_path):
    loop = make_arm(tmp_path, "accumulate", "none", 0.1, range(2))
    control = make_arm(tmp_path, "accumulate", "no_synthetic", 0.0, range(2))
    text = summary_of(*loop, *control)
    assert "Undecided, needs about 6 seeds: loop +0.200 [+0.200, +0.200], 2 seeds" in text


def test_of_many_arms_with_one_verdict_the_range_is_given(tmp_path):
    found = []
    for i, rule in enumerate("abcd"):
        found += make_arm(tmp_path, rule, "none", 0.1 + 0.01 * i)
        found += make_arm(tmp_path, rule, "fresh_real", 0.0)
    for workdir in found:
        edit(workdir / "config.json", lambda c: c["verdict"].update(control="fresh_real"))
    text = summary_of(*found)
    numbers = "a; b; c; d, contrasts from +0.200 to +0.260."
    assert text.endswith(f"against fresh_real. Real images help more: {numbers}")


def test_summary_of_one_run_says_what_its_plan_needs(tmp_path):
    text = summary_of(make_workdir(tmp_path / "run", rule="replace"))
    assert "Undecided, needs 6 seeds or more, each with a control fresh_real: substitution" in text
    assert "Undecided" not in summary_of(make_workdir(tmp_path / "control", control="fresh_real"))


def test_controls_without_a_loop_are_named(tmp_path):
    loop = make_arm(tmp_path, "accumulate", "none", 0.1)
    control = make_arm(tmp_path, "accumulate", "no_synthetic", 0.0)
    stray = make_arm(tmp_path, "replace", "fresh_real", 0.0, range(1))
    text = summary_of(*loop, *control, *stray)
    assert "Amplification: accumulate +0.200" in text
    assert "Not compared with anything, for no loop matches: replace, fresh_real" in text


def test_summary_warns_of_the_validation_split(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    edit_record(workdir, 2, lambda record: record.update(split="validation"))
    assert "are not final" in summary_of(workdir)


def test_summary_warns_of_different_splits(tmp_path):
    paths = [make_workdir(tmp_path / str(seed), seed=seed) for seed in range(2)]
    edit_record(paths[1], 2, lambda record: record.update(split="validation"))
    assert "different splits (test, validation): do not compare them" in summary_of(*paths)


def test_caveats_name_inexact_generations_and_empty_subgroups(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    edit_record(workdir, 2, lambda record: record.update(exact=False))
    set_metric(workdir, 2, "undefined_subgroups", 2)
    text = " ".join(caveats(read_run(workdir)))
    assert "Generation 2: marked not exact" in text
    assert "Subgroups without test images: 2" in text


def test_stand_in_data_is_named_in_title_and_caveats(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    edit_record(workdir, 0, lambda record: record["data"].update(stand_in="other checksums"))
    run = read_run(workdir)
    assert title([run]) == "STAND-IN for digits, pool rule accumulate"
    assert "no number here says anything about that data set" in caveats(run)[0]


def test_an_untested_gap_has_no_null_sentence(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    set_metric(workdir, 0, GAP, 0.3)
    assert "would lie between" not in summary_of(workdir)
