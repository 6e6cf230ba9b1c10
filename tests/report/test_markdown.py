"""Tables of a study as Markdown, and their place in a file."""

import countsstudy
import pytest
from sidestudy import make_row, make_side_study
from workdirs import make_study

from selfloop_jax.analysis import arms, counts_forecast, forecast
from selfloop_jax.analysis.numbers import as_csv, read_csv, rows
from selfloop_jax.analysis.runs import read_runs
from selfloop_jax.report import costs, markdown
from selfloop_jax.report import counts_forecast as counts_figures
from selfloop_jax.report import forecast as forecast_figures


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    path = folder / "x.csv"
    path.write_text(as_csv(rows(read_runs(make_study(folder)))))
    return path


def headings(text: str) -> list[str]:
    return [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]


def test_a_study_has_a_table_each_of_verdicts_levels_contrasts_and_images(numbers):
    text = markdown.markdown(read_csv(numbers))
    assert headings(text) == [
        *("Planned", "Not planned", "Verdicts: change of bias, loop against control"),
        *("Where the contrasts come from", "Levels"),
        *("Contrasts with every control", "Generated images", "Coverage against copy machines"),
        "Cost",
    ]
    assert "- Inclusion (what generated images do in addition to the real ones" in text
    assert "| accumulate | 6 | 0.875 → 0.675 [0.655, 0.695] |" in text
    assert "| accumulate | no_synthetic | +0.200 [" in text
    assert "| replace | 1.00 → 3.00 [0.50] |" in text
    ones = "1.000 1.000 1.000"
    assert f"| replace | 6 | {ones} | {ones} | [1.000, 1.000] | – | – |" in text


def test_forecasts_are_tabled_where_there_is_a_side_study():
    loop = [make_row("main", "a", 0, g, 0.5, 0.5, "replace") for g in range(3)]
    text = markdown.markdown([*loop, *make_side_study()])
    assert "| all runs | generated share, by class |" in text
    assert "\nResponse of the generators of the side study: " in text


def test_a_study_with_a_learning_curve_has_its_forecast_its_tests_and_its_law():
    text = markdown.markdown(countsstudy.make(("replace", "accumulate")))
    assert headings(text)[-5:] == [
        *("Forecast from counts", "Errors of the forecast from counts", "Tests of the forecast"),
        *("The law: terms that were tried", "The law: how far it is off"),
    ]
    assert "- Plan, number 6, that without real images the forecast from drift beats every" in text
    assert "- Plan, number 7, that with real images kept its error is at most 0.01 above" in text
    assert "- replace, rho 0.6: errors of the mean equal opportunity difference forecast" in text
    assert "From drift: by a joint test the error is smaller than that of " in text
    assert "- accumulate, rho 0.6: errors of the" in text
    assert "within 0.01 of that of no change" in text
    assert "| log(1 + n), I / (1 + n) |" in text
    assert "Law of the logit of a recall: mean " in text


def test_figures_of_the_forecast_from_counts_name_each_loop():
    rows = countsstudy.make(("replace",))
    law = counts_forecast.law([row for row in rows if row["set"] == "side"])
    made, _ = counts_forecast.forecasts(arms.arms([r for r in rows if r["set"] == "main"]), law)
    figure = counts_figures.forecast_figure(made)
    assert figure.png.startswith(b"\x89PNG")
    assert "rho 0.6: errors of the mean equal opportunity difference" in figure.alt
    assert counts_figures.law_figure(law).png.startswith(b"\x89PNG")


def test_costs_are_minutes_of_each_arm_by_generation():
    rows = [
        make_row("main", f"run-{seed}", seed, g, 0.5, 0.5, "replace")
        for seed in (0, 1)
        for g in (0, 1, 2)
    ]
    for row in rows:
        row |= {"seconds.diffusion": 60.0 * (row["generation"] + 1), "seconds.measure": 30.0}
    (row,) = costs.cost_table(arms.arms(rows)).rows
    # 1.5 minutes, then 2.5 and 3.5.
    assert row[1:] == ("2", "1.5", "6.0", "12")
    assert costs.cost_table([]) is None


def test_forecast_figures_describe_their_errors():
    found = forecast.curves(make_side_study())
    loop = [make_row("main", "a", 0, g, 0.5, 0.5, "replace") for g in range(3)]
    made, _ = forecast.forecasts(arms.arms(loop), found)
    figure = forecast_figures.forecast_figure(made)
    assert figure.png.startswith(b"\x89PNG")
    assert "all runs: error " in figure.alt
    assert "rivals: real share " in figure.alt
    assert "copy machine " in figure.alt
    header = forecast_figures.forecast_table(made).header
    assert {"error, real share", "error, copy machine", "error, generation 0"} < set(header)
    assert "From scratch a, b = " in forecast_figures.response_figure(found).caption


def test_a_run_whose_counts_do_not_add_up_is_named_and_the_rest_is_reported(numbers):
    found = read_csv(numbers)
    found[3]["pool.subgroup_counts"] = found[3]["pool.subgroup_counts"] + 1
    text = markdown.markdown(found)
    assert text.startswith(f"### Left out\n\n- {found[3]['run']}: left out: generation ")
    assert "| accumulate | 5 |" in text or "| replace | 5 |" in text


def test_runs_of_different_plans_are_named(numbers):
    found = read_csv(numbers)
    for row in found:
        if row["setting.pool.rule"] == "replace":
            row["verdict.margin"] = "0.2"
    text = markdown.markdown(found)
    assert "- These runs follow different analysis plans (" in text
    assert "margin 0.2" in text
    assert "### Levels" in text


def test_a_plan_that_names_a_missing_arm_is_a_line(numbers):
    found = [row for row in read_csv(numbers) if row["setting.loop.control"] != "no_synthetic"]
    text = markdown.markdown(found)
    assert "No matching control of the kind no_synthetic, so no change is tested." in text
    assert "### Levels" in text


def test_tables_replace_the_text_between_their_marks(numbers, tmp_path):
    path = tmp_path / "results.md"
    path.write_text("before\n<!-- tables of x.csv -->\nformer\n<!-- end of x.csv -->\nafter\n")
    assert markdown.main([str(numbers), f"--into={path}"]) == 0
    text = path.read_text()
    assert text.startswith("before\n<!-- tables of x.csv -->\n\n### Planned\n\n- ")
    assert text.endswith("\n<!-- end of x.csv -->\nafter\n")
    assert "former" not in text
    assert markdown.main([str(numbers), f"--into={path}"]) == 0
    assert path.read_text() == text


def test_a_file_without_marks_is_refused(numbers, tmp_path, capsys):
    path = tmp_path / "results.md"
    path.write_text("<!-- end of x.csv -->\n<!-- tables of x.csv -->\n")
    assert markdown.main([str(numbers), f"--into={path}"]) == 2
    assert "the file needs the lines <!-- tables of x.csv --> and" in capsys.readouterr().err
    assert path.read_text() == "<!-- end of x.csv -->\n<!-- tables of x.csv -->\n"


def test_a_missing_csv_is_one_line_and_code_2(tmp_path, capsys):
    assert markdown.main([str(tmp_path / "missing.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert markdown.main([]) == 2
