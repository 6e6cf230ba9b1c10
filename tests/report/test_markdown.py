"""Arms, verdicts, prediction, CSV and tables: from small workdirs whose course is known."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import edit_record, make_workdir

from selfloop_jax.analysis import arms, forecast, verdicts
from selfloop_jax.analysis.numbers import FACTS, Row, as_csv, read_csv, rows
from selfloop_jax.analysis.runs import read_runs
from selfloop_jax.measure import dynamics
from selfloop_jax.report import forecast as forecast_figures
from selfloop_jax.report import markdown
from selfloop_jax.report.__main__ import main
from selfloop_jax.report.page import write

SEEDS = range(6)


GAP = "equal_opportunity_difference_mean"


PLAN = {"control": "fresh_real", "metrics": [GAP], "margin": 0.05, "alpha": 0.05}


def make_arm(
    folder: Path, rule: str, control: str, slope: float, seeds=SEEDS, generations=3
) -> list[Path]:
    """Runs whose gap goes from .2 by `slope` a generation, each seed a little off."""
    made = []
    for seed in seeds:
        workdir = make_workdir(folder / f"{control}-{rule}-{seed}", generations, seed, rule)
        config = json.loads((workdir / "config.json").read_text())
        config["loop"] |= {"control": control, "generation_zero": str(seed)}
        (workdir / "config.json").write_text(json.dumps(config | {"verdict": PLAN}))
        for g in range(generations):
            gap = 0.2 + g * (slope + 0.003 * (seed - 2.5))
            edit_record(workdir, g, lambda record, gap=gap: record["metrics"].update({GAP: gap}))
            if control != "none":
                edit_record(workdir, g, lambda record: record.update(samples=None, fidelity=None))
        made.append(workdir)
    return made


def findings(workdirs) -> list[verdicts.Finding]:
    return verdicts.findings(arms.arms(rows(read_runs(workdirs))))


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[Path]:
    """Two loops with their controls, the first of which moves away from its own."""
    folder = tmp_path_factory.mktemp("study")
    return [
        *make_arm(folder, "accumulate", "none", 0.1),
        *make_arm(folder, "replace", "none", 0.0),
        *make_arm(folder, "accumulate", "fresh_real", 0.0),
        *make_arm(folder, "replace", "fresh_real", 0.0),
        *make_arm(folder, "accumulate", "no_synthetic", 0.0),
    ]


def test_runs_that_differ_in_their_seed_alone_are_one_arm(three):
    every = arms.arms(rows(read_runs(three)))
    names = [{*arm.name.split(", ")} for arm in every]
    controls = [{"accumulate", "fresh_real"}, {"replace", "fresh_real"}, {"no_synthetic"}]
    assert names == [{"accumulate"}, {"replace"}, *controls]
    assert [len(arm.runs) for arm in every] == [6] * 5
    assert every[0].series(f"metrics.{GAP}").shape == (6, 3)
    assert arms.control_of(every[1], every, "fresh_real").fields["config.pool.rule"] == "replace"
    assert arms.control_of(every[1], every, "no_synthetic").control == "no_synthetic"
    assert arms.control_of(every[1], every, "oracle_resample") is None


def test_the_interval_over_seeds_is_student_s(three):
    arm = arms.arms(rows(read_runs(three)))[0]
    values = arm.series(f"metrics.{GAP}")
    low, high = arm.interval(f"metrics.{GAP}")
    half = 2.5706 * values[:, 2].std(ddof=1) / math.sqrt(6)
    np.testing.assert_allclose(
        [low[2], high[2]], values[:, 2].mean() + np.array([-half, half]), rtol=1e-4
    )


def test_the_verdict_rests_on_the_contrast_to_the_planned_control(three):
    accumulate, replace = findings(three)
    assert (accumulate.arm.name, accumulate.control) == ("accumulate", "fresh_real")
    assert accumulate.result["verdict"] == "amplification"
    assert accumulate.result["mean"] == pytest.approx(0.2)
    assert accumulate.result["p"] == 2 / 64
    assert replace.result["verdict"] == "no change"


def test_an_attenuated_bias_and_one_that_is_better_when_larger(tmp_path):
    loop, control = (
        make_arm(tmp_path, "accumulate", kind, s)
        for kind, s in (("none", -0.05), ("fresh_real", 0.0))
    )
    assert findings([*loop, *control])[0].result["verdict"] == "attenuation"
    for workdir in (*loop, *control):
        config = json.loads((workdir / "config.json").read_text())
        config["verdict"]["metrics"] = ["disparate_impact_ratio_mean"]
        (workdir / "config.json").write_text(json.dumps(config))
        for g in range(3):
            ratio = 0.9 - 0.1 * g * ("none" in workdir.name) - 0.001 * g * int(workdir.name[-1])
            edit_record(
                workdir, g, lambda r, v=ratio: r["metrics"].update(disparate_impact_ratio_mean=v)
            )
    assert (
        findings([*loop, *control])[0].result["verdict"] == "amplification"
    )  # a falling ratio is more bias


def test_without_its_control_or_with_few_seeds_nothing_is_claimed(three, tmp_path):
    assert findings(three[:12]) == []
    assert "no change is tested" in write(three[:12], tmp_path / "page.html").read_text()
    few = [path for path in three if path.name[-1] in "012"]
    assert {one.result["verdict"] for one in findings(few)} == {"not distinguishable"}
    assert "3 seeds" in findings(few)[0].result["reason"]


def test_a_seed_without_its_control_is_left_out(three):
    assert (
        findings([path for path in three if path.name != "fresh_real-accumulate-5"])[0].result[
            "seeds"
        ]
        == 5
    )


def test_the_page_of_a_study(three, tmp_path):
    page = write(three, tmp_path / "study.html")
    html = page.read_text()
    assert (
        "accumulate, mean equal opportunity difference, against fresh_real: amplification" in html
    )
    assert "replace, mean equal opportunity difference, against fresh_real: no change" in html
    assert "<h2>Did the loop change the bias?</h2>" in html
    stems = {png.stem for png in (tmp_path / "study").glob("*.png")}
    assert f"controls_{GAP}" in stems
    assert html.count('<details class="arm"') == 2  # of each loop one run, of controls none
    assert not re.search(r"https?://", html)


def test_the_csv_gives_back_the_rows(three, tmp_path):
    found = rows(read_runs(three))
    path = tmp_path / "numbers.csv"
    path.write_text(as_csv(found))
    again = read_csv(path)
    assert len(again) == len(found) == 90
    for row, other in zip(found, again, strict=True):
        for name, value in row.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(other[name], value)
            elif isinstance(value, float):
                assert other[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
            else:
                assert other[name] == value, name
    path.write_text(as_csv(again))
    assert markdown.markdown(read_csv(path)) == markdown.markdown(again)


def test_tables_go_between_their_marks_and_nowhere_else(three, tmp_path):
    numbers, text = tmp_path / "x.csv", tmp_path / "results.md"
    numbers.write_text(as_csv(rows(read_runs(three))))
    text.write_text("before\n<!-- tables of x.csv -->\nold\n<!-- end of x.csv -->\nafter\n")
    assert markdown.main([str(numbers), f"--into={text}"]) == 0
    found = text.read_text()
    assert found.startswith("before\n<!-- tables of x.csv -->\n\n### Verdicts\n\n| arm | metric |")
    assert found.endswith("\n<!-- end of x.csv -->\nafter\n")
    assert "old" not in found
    assert markdown.main([str(numbers), f"--into={text}"]) == 0
    assert text.read_text() == found


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "set,run,seed,generation\nmain,x,one,2\n"])
def test_what_is_no_csv_of_runs_is_a_mistake_of_the_user(text, tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text(text)
    assert markdown.main([str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: no table of runs")
    path.write_text("")
    assert markdown.main([str(tmp_path / "missing.csv")]) == 2
    assert markdown.main([]) == 2


CLASSES = 10


REAL = 1000  # images of a class


def counts(share: float, size: int) -> np.ndarray:
    return np.full(CLASSES, round(share * size))


def row(
    kind: str, run: str, seed: int, g: int, pool: float, drawn: float, rule: str, **fields
) -> Row:
    size = REAL
    facts = FACTS | {"pool.rule": rule, "diffusion.later.start": "previous"}
    return {
        "set": kind, "run": run, "seed": seed, "generation": g, "config.pool.rule": rule, **fields,
        **{f"is.{name}": str(value) for name, value in facts.items()},
        f"metrics.{GAP}": 0.1 + 0.4 * pool,
        "pool.class_counts": np.full(CLASSES, size), "pool.aligned_counts": counts(pool, size),
        "samples.class_counts": np.full(CLASSES, 1000), "samples.aligned_counts": counts(drawn, 1000),
    }  # fmt: skip


def side_study() -> list[Row]:
    """Generators that draw logit r = -.2 + .9 logit B, fine-tuned ones -.1 + .5 logit B + .4 logit r'."""

    def respond(a, b, c, pool, previous=0.5):
        logit = [math.log(s / (1 - s)) for s in (pool, previous)]
        return 1 / (1 + math.exp(-(a + b * logit[0] + c * logit[1])))

    found = []
    for i, level in enumerate((0.2, 0.4, 0.6, 0.8)):
        first = respond(-0.2, 0.9, 0, level)
        for rule, pool in (("replace", first), ("real_plus_latest", (5 * level + 2 * first) / 7)):
            fields, run = {"config.data.bias.rho": str(level)}, f"side-{rule}-{i}"
            found.append(row("side", run, i, 0, level, first, rule, **fields))
            found.append(
                row("side", run, i, 1, pool, respond(-0.1, 0.5, 0.4, pool, first), rule, **fields)
            )
    return found


def test_the_curves_of_the_side_study_are_found():
    found = forecast.curves(side_study())
    np.testing.assert_allclose(found.scratch.coefficients, [-0.2, 0.9], atol=0.01)
    np.testing.assert_allclose(found.fine_tuned.coefficients, [-0.1, 0.5, 0.4], atol=0.1)
    assert found.generators == {"scratch": 4, "fine_tuned": 8}  # the two rules share generation 0
    assert len(found.points["scratch"]) == 4 * CLASSES
    assert len(found.points["fine_tuned"]) == 8 * CLASSES
    np.testing.assert_allclose(found.gap(0.5)[0], 0.3, atol=1e-9)


def test_a_loop_that_follows_the_curves_is_predicted_better_than_by_standing_still():
    found = forecast.curves(side_study())
    main_rows = []
    for rule in ("replace", "accumulate"):
        for seed in range(2):
            drawn, pools, expected = [0.5], [0.5], found.scratch(0.5)
            for g in range(1, 5):
                sizes = dynamics.Sizes(n_real=REAL, count=1000)
                pools.append(float(dynamics.pool_shares(rule, g, 0.5, drawn, sizes)))
                expected = found.fine_tuned(pools[-1], expected)
                drawn.append(float(expected))
            for g in range(5):
                main_rows.append(row("main", f"{rule}-{seed}", seed, g, pools[g], drawn[g], rule))
    made, reasons = forecast.forecasts(arms.arms(main_rows), found)
    assert reasons == []
    assert [one.arm.name for one in made] == ["replace", "accumulate"]
    for one in made:
        for shares in (one.scores["share drawn"], one.scores["share drawn, by class"]):
            assert shares["error"] < 0.005 < shares["error_naive"]
            assert shares["coverage"] == 1
        assert one.scores["gap"]["error"] < 0.01
    assert "Fine-tuned a, b, c = " in forecast.response_formulas(found)
    assert forecast_figures.forecast_figure(made).png.startswith(b"\x89PNG")
    assert forecast_figures.response_figure(found).png.startswith(b"\x89PNG")
    assert "| replace | share drawn, by class |" in markdown.markdown([*main_rows, *side_study()])


def test_without_aligned_groups_nothing_is_predicted():
    unbiased = [r | {"pool.aligned_counts": np.zeros(CLASSES)} for r in side_study()]
    assert forecast.curves(unbiased) is None
    assert forecast.curves([]) is None


def test_what_cannot_be_predicted_is_told():
    found = forecast.curves([r for r in side_study() if not r["generation"]])
    assert found.fine_tuned is None
    assert found.scratch is not None
    tuned = [row("main", "a", 0, g, 0.5, 0.5, "replace") for g in range(2)]
    scratch = [r | {"is.diffusion.later.start": "scratch"} for r in tuned]
    imposed = [r | {"is.diffusion.condition_on": "label_group"} for r in scratch]
    for main_rows, reason in (
        (tuned, "too few generators"),
        (imposed, "told the group"),
        (tuned[:1], "two gen"),
    ):
        made, reasons = forecast.forecasts(arms.arms(main_rows), found)
        assert made == []
        assert reason in reasons[0]
    assert len(forecast.forecasts(arms.arms(scratch), found)[0]) == 1


def test_classes_without_an_aligned_group_are_left_out():
    found = forecast.curves(side_study())
    loop = [row("main", "a", 0, g, 0.5, 0.5, "replace") for g in range(3)]
    ((whole,), _) = forecast.forecasts(arms.arms(loop), found)
    for one in loop:
        for place in ("pool", "samples"):
            one[f"{place}.aligned_counts"][5:] = 0
    ((half,), _) = forecast.forecasts(arms.arms(loop), found)
    np.testing.assert_allclose(half.share.mean, whole.share.mean)
    np.testing.assert_allclose(half.shares, whole.shares)


@pytest.mark.parametrize("rule", dynamics.RULES)
def test_every_rule_is_predicted_with_its_own_sizes(rule):
    facts = {
        "is.pool.alpha": "0.25",
        "is.pool.budget": "800",
        "is.pool.n_real": "300",
        "is.pool.n_generated": "100",
    }
    loop = [row("main", "a", 0, g, 0.5, 0.3 if g == 0 else 0.4, rule) | facts for g in range(3)]
    ((one,), _) = forecast.forecasts(arms.arms(loop), forecast.curves(side_study()))
    assert np.isfinite(one.share.mean).all()
    assert (one.share.low <= one.share.high).all()
    if rule in ("substitute", "fresh"):  # a quarter of the pool is drawn
        found = forecast.curves(side_study())
        expected = found.fine_tuned(0.75 * 0.5 + 0.25 * 0.3, found.scratch(0.5))
        assert one.share.mean[0, 1] == pytest.approx(float(expected))


def test_runs_of_the_side_study_are_told_apart(three, tmp_path):
    side = make_workdir(tmp_path / "side", 2, seed=100)
    out = tmp_path / "page.html"
    assert main([*map(str, three[:2]), "--side", str(side), f"--out={out}"]) == 0
    found = read_csv(tmp_path / "page" / "numbers.csv")
    assert {(r["set"], r["run"]) for r in found if r["seed"] == 100} == {("side", "side")}
