"""The page of one run and of a study: its files, its HTML, and the command line."""

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import BinaryIO
from unittest import mock

import countsstudy
import pytest
from matplotlib.figure import Figure
from workdirs import GAP, edit, make_arm, make_study, make_workdir

from selfloop_jax.analysis.numbers import read_csv
from selfloop_jax.errors import RunError
from selfloop_jax.report import markdown, write
from selfloop_jax.report.__main__ import main

FIGURES = {
    *("strip", "curves_headline", "drift"),
    *("curves_accuracy", "curves_gaps", "curves_ratios", "curves_composition", "curves_fidelity"),
    *("curves_content", "samples", "samples_by_group", "groups", "recall", "pool"),
    *("loss_diffusion", "loss_classifier"),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """One run with its report."""
    path = make_workdir(tmp_path_factory.mktemp("runs") / "plain")
    write([path])
    return path


@pytest.fixture(scope="module")
def html(workdir) -> str:
    return (workdir / "report.html").read_text()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, str]:
    """Two loops with their controls, and a side run: (page, html)."""
    folder = tmp_path_factory.mktemp("study")
    workdirs = make_study(folder)
    side = make_workdir(folder / "side", 2, seed=0)
    page = folder / "study.html"
    assert main([*map(str, workdirs), "--side", str(side), f"--out={page}"]) == 0
    return page, page.read_text()


def test_the_page_has_all_figures(workdir, html):
    pngs = sorted((workdir / "report").glob("*.png"))
    assert {png.stem for png in pngs} == FIGURES
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)
    assert html.count("<img ") == html.count("<figcaption>") == len(FIGURES)
    assert all(re.findall(r'<img [^>]*alt="([^"]+)"', html))


def test_the_page_is_self_contained(html):
    assert not re.search(r"https?://", html)
    assert "<script" not in html
    assert "<link" not in html
    assert "url(" not in html
    assert set(re.findall(r'src="([^"]{5})', html)) == {"data:"}


def test_the_page_names_the_run_and_escapes_its_text(html):
    assert "<h1>digits, pool rule accumulate</h1>" in html
    assert "generations 0 to 2" in html
    assert "&lt;cpu&gt;" in html


def test_the_page_speaks_the_language_of_the_field(html):
    text = re.sub(r'src="[^"]*"', "", html)
    assert not re.search(r"\b(drawn|drew|fake|floor|cells?|told|beside)\b", text)
    for name in ("FID (classifier features)", "baseline", "generated images", "interval"):
        assert name in text


def cells(html: str, title: str) -> list[str]:
    """The text of the cells in the row of a metric."""
    row = re.search(rf'<th scope="row">{re.escape(title)}</th>(.*?)</tr>', html, re.DOTALL).group(1)
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_a_metric_is_shown_with_its_interval(html):
    assert cells(html, "accuracy ↑")[0] == "0.900<small>[0.850, 0.950]</small>"
    assert cells(html, "worst-group accuracy ↑")[0] == "0.900"


def test_an_undefined_metric_is_called_undefined(html):
    assert cells(html, "demographic parity difference ↓") == ["undefined"] * 3
    assert "Undefined or not measured: demographic parity difference; aligned minus" in html


def test_fidelity_is_shown_with_its_baseline(html):
    assert cells(html, "all images") == ["3 (0.5)"]
    assert cells(html, "zero")[0] == "2 (1)"
    assert cells(html, "red0")[0] == "3 (–)"
    assert "Sizes: few images." in html


def test_the_same_run_gives_the_same_bytes(workdir, html, tmp_path):
    again = write([workdir], tmp_path / "report.html")
    assert again.read_text() == html
    for png in (tmp_path / "report").glob("*.png"):
        assert png.read_bytes() == (workdir / "report" / png.name).read_bytes()


def test_missing_files_leave_out_only_their_figures(tmp_path):
    workdir = make_workdir(tmp_path / "run", 2)
    missing = ["gen_0001/samples.npz", "real.npz", "metrics.jsonl", "manifest.json"]
    for file in missing:
        (workdir / file).unlink()
    html = write([workdir]).read_text()
    assert all(f"{file}: missing" in html for file in missing)
    stems = {png.stem for png in (workdir / "report").glob("*.png")}
    assert stems == FIGURES - {"loss_diffusion", "loss_classifier"}


def test_a_control_is_shown_without_generated_images(tmp_path):
    workdir = make_workdir(tmp_path / "run", 2, control="fresh_real")
    html = write([workdir]).read_text()
    assert "samples.npz: missing" not in html
    stems = {png.stem for png in (workdir / "report").glob("*.png")}
    assert {"curves_composition", "curves_fidelity", "curves_content"} & stems == set()


def test_the_page_of_a_study_has_verdicts_and_control_figures(study):
    page, html = study
    metric = "mean equal opportunity difference"
    head = html[html.index("<header>") : html.index("</header>")]
    assert "Inclusion (what generated images do in addition to the real ones" in head
    assert "Amplification: accumulate +0.200" in head
    assert head.index('alt="Strip of images') < head.index("Inclusion (") < head.index("Forest")
    assert re.search(f"accumulate, {metric}, against no_synthetic [^:]*: [^:]*: amplif", html)
    assert re.search(f"replace, {metric}, against fresh_real [^:]*: [^:]*: no change", html)
    assert "<h2>Verdicts: change of bias, loop against control</h2>" in html
    stems = {png.stem for png in page.with_suffix("").glob("*.png")}
    assert {f"controls_{GAP}", "forest", "forest_all", "drift"} <= stems
    assert {"run1_samples", "run2_samples", "run1_groups", "run2_groups"} <= stems
    assert "<h2>Where the contrasts come from</h2>" in html
    assert "<h2>Cost</h2>" in html


def test_a_study_shows_one_run_per_loop(study):
    _, html = study
    assert html.count('<details class="arm"') == 2  # controls have no part of their own
    assert "<h2>accumulate</h2>" in html
    assert "<h2>replace</h2>" in html


def test_the_side_study_is_marked_in_the_csv_and_its_seeds_on_the_page(study):
    page, html = study
    rows = read_csv(page.with_suffix("") / "numbers.csv")
    assert {row["run"] for row in rows if row["set"] == "side"} == {"side"}
    assert len({row["run"] for row in rows if row["set"] == "main"}) == 30
    assert "Seeds 0 are in the side study too" in html
    assert "No forecast: the side study needs generators at two initial biases" in html


def test_a_side_study_of_classifiers_gives_a_forecast_from_counts_on_the_page(tmp_path):
    runs = countsstudy.make_workdirs(tmp_path, countsstudy.make(("replace",)))
    page = write(runs["main"], tmp_path / "study.html", runs["side"])
    html = page.read_text()
    assert "Plan, number 6, that without real images the forecast from drift beats every" in html
    for heading in ("Errors of the forecast from counts", "Tests of the forecast"):
        assert f"<h3>{heading}</h3>" in html
    stems = {png.stem for png in page.with_suffix("").glob("*.png")}
    assert {"forecast_from_counts", "learning_curve"} <= stems
    # The page and the CSV it writes say the same.
    text = markdown.markdown(read_csv(page.with_suffix("") / "numbers.csv"))
    (sentence,) = (line for line in text.splitlines() if line.startswith("- Plan, number 6"))
    assert unescape(html).count(sentence.removeprefix("- ")) == 1


def not_a_run(tmp_path: Path) -> list[str]:
    return [str(tmp_path)]


def wrong_suffix(tmp_path: Path) -> list[str]:
    return [str(make_workdir(tmp_path / "run", 1)), "--out=report.pdf"]


def unknown_flag(tmp_path: Path) -> list[str]:
    return [str(make_workdir(tmp_path / "run", 1)), "--dpi=3"]


def old_version(tmp_path: Path) -> list[str]:
    workdir = make_workdir(tmp_path / "run", 1)
    edit(workdir / "manifest.json", lambda entries: entries[0].pop("selfloop_jax"))
    return [str(workdir)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (not_a_run, "config.json is needed"),
        (wrong_suffix, "--out=report.pdf: must be a file ending in .html"),
        (unknown_flag, "--dpi=3"),
        (old_version, "written by selfloop_jax 0.1"),
        (lambda _: [], "WORKDIR"),
    ],
)
def test_a_usage_error_is_one_line_and_code_2(tmp_path, capsys, arguments, message):
    assert main(arguments(tmp_path)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_a_damaged_record_is_one_line_and_code_1(tmp_path, capsys):
    workdir = make_workdir(tmp_path / "run", 1)
    (workdir / "gen_0000" / "record.json").write_text("{")
    assert main([str(workdir)]) == 1
    printed = capsys.readouterr()
    assert "record.json: damaged" in printed.err
    assert printed.err.count("\n") == 1


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)


def test_the_command_imports_neither_jax_nor_pyplot(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    code = (
        "import sys; from selfloop_jax.report.__main__ import main; code = main(sys.argv[1:]);"
        "assert not {'jax', 'flax', 'matplotlib.pyplot'} & set(sys.modules); sys.exit(code)"
    )
    out = tmp_path / "folder" / "page.html"
    done = python(code, str(workdir), f"--out={out}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    assert (tmp_path / "folder" / "page" / "samples.png").is_file()


def test_importing_report_and_analysis_does_not_import_matplotlib():
    code = (
        "import sys, selfloop_jax.report, selfloop_jax.analysis.forecast;"
        "assert not {'jax', 'matplotlib', 'jinja2'} & set(sys.modules)"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")


def unrendered(_figure: Figure, file: BinaryIO, **_: object) -> None:
    """Stands in for `savefig`, which takes two thirds of a page's time."""
    file.write(b"\x89PNG")


def page_of(*workdirs: Path, out: Path) -> str:
    """The page's text; its figures have no pixels."""
    with mock.patch.object(Figure, "savefig", unrendered):
        return write(workdirs, out).read_text()


def test_too_few_seeds_leave_the_rest_of_the_report(tmp_path):
    html = page_of(*make_study(tmp_path, range(2)), out=tmp_path / "page.html")
    assert "Undecided, needs about 7 seeds: accumulate +0.200" in html
    assert "<h2>Metrics over generations</h2>" in html


def test_a_loop_without_its_control_and_a_control_without_a_loop_are_one_line_each(tmp_path):
    loop = make_workdir(tmp_path / "loop")
    control = make_workdir(tmp_path / "control", rule="replace", control="fresh_real")
    html = page_of(loop, control, out=tmp_path / "page.html")
    assert html.count("No matching control of the kind no_synthetic, so no change is tested.") == 1
    assert html.count("Not compared with anything, for no loop matches: ") == 1
    stems = {png.stem for png in (tmp_path / "page").glob("*.png")}
    assert {"strip", "curves_headline", "drift", "run1_samples"} <= stems
    assert "forest" not in stems


def test_runs_that_the_sweep_lists_and_the_report_lacks_are_one_line(tmp_path):
    study = tmp_path / "study"
    paths = [make_workdir(study / f"replace-{seed}", seed=seed) for seed in range(2)]
    for seed, path in enumerate(paths):
        source = f"elsewhere/zero-{seed}"
        edit(path / "config.json", lambda c, s=source: c["loop"].update(branch_from=s))
    absent = [f"accumulate-{seed}" for seed in range(8)]
    zeros = ["zero-0", "zero-1"]  # in the branches already
    names = [path.name for path in paths]
    lists = {
        "other": [*names[:1], "other-0"],  # shares a run with the next, which has both
        "sweep": [*zeros, *names, *absent],
        "response": ["side-0"],  # no run of this one was asked for
    }
    (study / "listed_runs.json").write_text(json.dumps(lists))
    html = page_of(*paths, out=tmp_path / "page.html")
    line = "Of the runs that the sweep in study lists, this report lacks accumulate-0, "
    assert html.count(line) == 1
    assert "accumulate-5 and 2 more." in html
    assert not any(name in html for name in ("accumulate-6", "side-0", "other-0", "lacks zero"))
    assert "2 runs overlaid" in html
    assert "this report lacks" not in page_of(paths[0], out=tmp_path / "one.html")
    lists["sweep"] = [*zeros, *names]
    (study / "listed_runs.json").write_text(json.dumps(lists))
    assert "this report lacks" not in page_of(*paths, out=tmp_path / "whole.html")
    for damaged in ("{", "[]", '{"sweep": [1]}'):
        (study / "listed_runs.json").write_text(damaged)
        with pytest.raises(RunError, match=r"listed_runs\.json"):
            page_of(*paths, out=tmp_path / "again.html")
    assert not (tmp_path / "again.html").exists()


def test_a_run_of_another_version_that_cannot_be_read_is_one_line(tmp_path):
    paths = [make_workdir(tmp_path / str(seed), seed=seed) for seed in range(3)]
    edit(paths[1] / "manifest.json", lambda entries: entries[0].pop("selfloop_jax"))
    edit(paths[2] / "manifest.json", lambda entries: entries[0].update(selfloop_jax="0.9.0"))
    edit(paths[2] / "gen_0001/record.json", lambda record: record.pop("tables"))
    html = page_of(*paths, out=tmp_path / "page.html")
    assert "1: left out: written by selfloop_jax 0.1, which this version (" in html
    assert "2: left out: written by selfloop_jax 0.9.0, which this version (" in html
    assert "seed 0 ·" in html
    assert (tmp_path / "page" / "curves_headline.png").is_file()


def test_controls_of_another_version_are_one_line_and_still_shown(tmp_path):
    loop = make_arm(tmp_path, "replace", "none", 0.1)
    control = make_arm(tmp_path, "replace", "fresh_real", 0.0)
    side = make_workdir(tmp_path / "side" / loop[0].name, 1, seed=9)  # a folder of the same name
    for workdir in control:
        for g in range(3):
            edit(workdir / f"gen_{g:04d}" / "record.json", lambda r: r.update(version="0.1.9"))
    html = write([*loop, *control], tmp_path / "page.html", [side]).read_text()
    line = "Several versions of the program made these runs (0.2.0: loop; 0.1.9: fresh_real"
    assert html.count(line) == 1
    assert "Amplification: " in html
    assert "but the control is of another version of the program (0.1.9, not 0.2.0)" in html


def test_a_readable_run_of_another_version_is_shown(tmp_path):
    paths = [make_workdir(tmp_path / str(seed), seed=seed) for seed in range(2)]
    edit(paths[1] / "manifest.json", lambda entries: entries[0].update(selfloop_jax="0.9.0"))
    html = page_of(*paths, out=tmp_path / "page.html")
    assert "left out: written" not in html
    assert "2 runs overlaid" in html


def test_a_plan_that_names_what_no_run_has_is_one_line_and_the_rest_is_shown(tmp_path):
    loop = make_arm(tmp_path, "replace", "none", 0.1)
    control = make_arm(tmp_path, "replace", "fresh_real", 0.0)
    other = make_workdir(tmp_path / "other", rule="accumulate")
    edit(other / "config.json", lambda c: c["verdict"].update(control="oracle_resample"))
    for workdir in (*loop, *control):
        metrics = [GAP, "aligned_contrast"]  # no record has the second
        edit(workdir / "config.json", lambda c, m=metrics: c["verdict"].update(metrics=m))
    html = page_of(*loop, *control, other, out=tmp_path / "page.html")
    assert "Undecided: accumulate. No matching control of the kind oracle_resample" in html
    lacking = (
        "aligned minus conflicting, against fresh_real. Undecided, needs about 7 seeds: replace"
    )
    assert f"{lacking} undefined, 0 seeds" in html
    assert "6 seeds without a value were left out." in html
    assert "Amplification: replace +0.200" in html
    assert (tmp_path / "page" / "forest.png").is_file()
