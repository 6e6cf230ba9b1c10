"""Tables of a study as Markdown, and their place in a file."""

import pytest
from sidestudy import make_row, make_side_study
from workdirs import make_study

from selfloop_jax.analysis import arms, forecast
from selfloop_jax.analysis.numbers import as_csv, read_csv, rows
from selfloop_jax.analysis.runs import read_runs
from selfloop_jax.report import forecast as forecast_figures
from selfloop_jax.report import markdown


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
        *("Verdicts: change of bias, loop against control",),
        *("Where the contrasts come from", "Levels"),
        *("Contrasts with every control", "Generated images", "Coverage against copy machines"),
    ]
    assert "| accumulate | 6 | 0.875 → 0.675 [0.655, 0.695] |" in text
    assert "| accumulate | no_synthetic | +0.200 [" in text
    assert "| replace | 1.00 → 3.00 [0.50] |" in text
    ones = "1.000 1.000 1.000"
    assert f"| replace | 6 | {ones} | {ones} | [1.000, 1.000] | – | – |" in text


def test_forecasts_are_tabled_where_there_is_a_side_study():
    loop = [make_row("main", "a", 0, g, 0.5, 0.5, "replace") for g in range(3)]
    text = markdown.markdown([*loop, *make_side_study()])
    assert "| all runs | generated share, by class |" in text
    assert text.splitlines()[-1].startswith("Response of the generators of the side study: ")


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


def test_tables_replace_the_text_between_their_marks(numbers, tmp_path):
    path = tmp_path / "results.md"
    path.write_text("before\n<!-- tables of x.csv -->\nformer\n<!-- end of x.csv -->\nafter\n")
    assert markdown.main([str(numbers), f"--into={path}"]) == 0
    text = path.read_text()
    assert text.startswith("before\n<!-- tables of x.csv -->\n\n### Verdicts: change")
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
