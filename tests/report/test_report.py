"""The report: read from small workdirs made here with NumPy, checked through its public functions."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from selfloop_jax.analysis import arms, config_diff, numbers, verdicts
from selfloop_jax.analysis.runs import read_run
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.report.__main__ import main
from selfloop_jax.report.page import write
from selfloop_jax.report.text import caveats, summary

CLASSES = ["zero", "one", "two"]


GROUPS = ["red", "green"]


FIGURES = {
    "curves_accuracy", "curves_gaps", "curves_ratios", "curves_distance", "curves_content",
    "samples", "samples_by_group", "groups", "recall", "pool", "loss_diffusion", "loss_classifier",
}  # fmt: skip


def make_workdir(
    path: Path,
    generations: int = 3,
    seed: int = 0,
    rule: str = "accumulate",
    source: str = "digits",
    groups: int = 2,
    nested: bool = False,
) -> Path:
    """A workdir as the loop leaves it, with arrays and numbers of no meaning."""
    path.mkdir(parents=True)
    config = {
        "seed": seed,
        "data": {"source": source},
        "pool": {"rule": rule},
        "loop": {"generations": 3},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "manifest.json").write_text(json.dumps([{"jax": "0.10.2", "device_kind": "<cpu>"}]))
    np.savez(path / "real.npz", **_images(30, groups))
    lines = []
    for g in range(generations):
        _make_generation(path / f"gen_{g:04d}", g, seed, source, groups, nested)
        for phase in ("diffusion", "classifier"):
            lines += [_loss(g, phase, step, 1 / step) for step in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return path


def _loss(generation: int, phase: str, step: int, loss: float) -> str:
    return json.dumps({"generation": generation, "phase": phase, "step": step, "loss": loss})


def _images(n: int, groups: int) -> dict[str, np.ndarray]:
    label = np.arange(n, dtype=np.int32) % len(CLASSES)
    pixels = np.arange(n * 192).reshape(n, 8, 8, 3).astype(np.uint8)
    return {"pixels": pixels, "label": label, "group": label % groups}


def _make_generation(
    folder: Path, g: int, seed: int, source: str, groups: int, nested: bool
) -> None:
    folder.mkdir()
    images, ids = _images(30, groups), np.arange(30, dtype=np.uint32)
    np.savez(folder / "samples.npz", **images, id=ids, condition=images["label"])
    logits = np.eye(len(CLASSES), dtype=np.float32)[images["label"]]
    np.savez(
        folder / "predictions.npz",
        id=ids,
        label=images["label"],
        group=images["group"],
        logits=logits,
    )
    (folder / "record.json").write_text(json.dumps(_record(g, seed, source, groups, nested)))


def _record(g: int, seed: int, source: str, groups: int, nested: bool) -> dict:
    joint = np.zeros((len(CLASSES), groups), int)
    joint[np.arange(30) % 3, np.arange(30) % 3 % groups] += 10
    names = ["accuracy", "worst_group_accuracy", "worst_subgroup_accuracy", "equalized_odds_difference",
             "equal_opportunity_difference_mean", "equal_opportunity_difference_max", "maximal_disparity",
             "disparate_impact_ratio_mean", "disparate_impact_ratio_min", "macro_std"]  # fmt: skip
    metrics = {name: round(0.9 - 0.1 * g - 0.01 * seed, 3) for name in names}
    metrics |= {"demographic_parity_difference": None, "undefined_cells": 0.0}
    samples = {
        "count": 30, "joint": joint.tolist(), "unknown_group": 0, "kl_to_real": 0.1 * g,
        "total_variation_to_real": 0.2 * g, "bias_aligned_share": 0.7, "classifier_agreement": 0.9,
        "classification_accuracy_score": None, "classification_accuracy_score_ratio": None,
    }  # fmt: skip
    data = {"source": source, "classes": CLASSES, "groups": [f"{GROUPS[i % 2]}{i}" for i in range(groups)],
            "nested": nested, "aligned_group": [0, 1, 0]}  # fmt: skip
    if nested:
        data["members"] = [list(range(c, groups, len(CLASSES))) for c in range(len(CLASSES))]
    pool = {
        "size": 30 * (g + 1),
        "real": 30,
        "generated": {str(o): 30 for o in range(g)},
        "joint": joint.tolist(),
    }
    return {
        "generation": g, "seed": seed, "exact": True, "split": "test", "data": data, "pool": pool,
        "metrics": metrics, "samples": samples, "digests": {"diffusion": "ab" * 32}, "parents": {},
        "seconds": {"pool": 0.1, "diffusion": 2.0}, "images_per_second": {"diffusion": 2500.0},
    }  # fmt: skip


def edit_record(workdir: Path, g: int, change) -> None:
    path = workdir / f"gen_{g:04d}" / "record.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def said_of(*workdirs: Path) -> str:
    """The sentences at the top of the page."""
    runs = [read_run(workdir) for workdir in workdirs]
    every = arms.arms(numbers.rows(runs))
    return " ".join(summary(runs, every, verdicts.findings(every)))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """One workdir with its report: (workdir, html)."""
    workdir = make_workdir(tmp_path_factory.mktemp("runs") / "plain")
    return workdir, write([workdir]).read_text()


def test_the_page_lies_in_the_workdir_with_all_figures(made):
    workdir, html = made
    assert (workdir / "report.html").is_file()
    pngs = sorted((workdir / "report").glob("*.png"))
    assert {png.stem for png in pngs} == FIGURES
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)
    assert html.count("<img ") == html.count("<figcaption>") == len(FIGURES)
    assert all(re.findall(r'<img [^>]*alt="([^"]+)"', html))


def test_the_page_needs_nothing_but_itself(made):
    _, html = made
    assert not re.search(r"https?://", html)
    assert "<script" not in html
    assert "<link" not in html
    assert set(re.findall(r'src="([^"]{5})', html)) == {"data:"}
    assert "url(" not in html


def test_the_page_says_what_was_run_and_no_more(made):
    _, html = made
    assert "<h1>digits, pool rule accumulate</h1>" in html
    assert "generations 0 to 2" in html
    assert "accuracy went from 0.900 to 0.700" in html
    assert "single run" in html
    assert "not for other seeds" in html
    assert "&lt;cpu&gt;" in html  # text of a run is escaped
    assert not re.search(r"\b(fake|synthetic)\b", re.sub(r'src="[^"]*"', "", html))


def test_an_undefined_metric_is_called_so(made):
    _, html = made
    row = re.search(r"demographic parity ↓</th>(.*?)</tr>", html).group(1)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["undefined"] * 3
    assert "Undefined or not measured: demographic parity, aligned minus other groups." in html


def test_a_bent_curve_is_not_told_as_a_straight_one(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    edit_record(workdir, 1, lambda record: record["metrics"].update(accuracy=0.25))
    said = said_of(workdir)
    assert "accuracy went from 0.900 to 0.700 (0.250 in generation 1)" in said


def test_same_inputs_same_bytes(made, tmp_path):
    workdir, html = made
    again = write([workdir], tmp_path / "report.html")
    assert again.read_text() == html
    for png in (tmp_path / "report").glob("*.png"):
        assert png.read_bytes() == (workdir / "report" / png.name).read_bytes()


def test_the_last_of_a_resumed_step_counts_and_a_cut_line_is_skipped(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=1)
    with (workdir / "metrics.jsonl").open("a") as lines:
        lines.write(_loss(0, "diffusion", 2, 7.0) + "\n")
        lines.write('{"generation":0,"phase":"diffusion","step":1,"accuracy":0.5}\n[]\n\xff\n')
        lines.write(_loss(5, "diffusion", 1, 9.0) + "\n")  # a generation without a record
        lines.write('{"generation":0,"phase":"diffusion","step":3,"lo')
    losses = read_run(workdir).losses["diffusion"]
    assert set(losses) == {0}
    np.testing.assert_allclose(losses[0], [[1, 1], [2, 7], [3, 1 / 3]])


def test_an_unfinished_generation_is_left_out(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    (workdir / "gen_0002" / "record.json").unlink()
    assert [generation.number for generation in read_run(workdir).generations] == [0, 1]
    html = write([workdir]).read_text()
    assert "generations 0 to 1" in html
    assert "gen_0002 has no record.json: not finished, left out." in html


def test_missing_files_cost_only_what_is_drawn_from_them(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    missing = [
        "gen_0001/samples.npz",
        "gen_0001/predictions.npz",
        "real.npz",
        "metrics.jsonl",
        "manifest.json",
    ]
    for file in missing:
        (workdir / file).unlink()
    html = write([workdir]).read_text()
    assert all(f"{file}: missing" in html for file in missing)
    stems = {png.stem for png in (workdir / "report").glob("*.png")}
    assert stems == FIGURES - {"loss_diffusion", "loss_classifier"}


def test_without_any_arrays_the_numbers_are_still_reported(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=1)
    for file in workdir.rglob("*.npz"):
        file.unlink()
    html = write([workdir]).read_text()
    assert {png.stem for png in (workdir / "report").glob("*.png")} == FIGURES - {
        "samples",
        "samples_by_group",
        "recall",
    }
    assert "gen_0000/samples.npz: missing" in html


def test_a_damaged_array_file_is_named_and_left_out(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    edit_record(workdir, 1, lambda record: record["digests"].update({"samples.npz": "0" * 64}))
    (workdir / "gen_0002" / "samples.npz").write_bytes(b"PK cut off")
    run = read_run(workdir)
    assert [generation.tiles is None for generation in run.generations] == [False, True, True]
    notes = " ".join(run.notes)
    assert "gen_0001/samples.npz: damaged" in notes
    assert "gen_0002/samples.npz: damaged" in notes


def test_two_runs_are_named_by_the_field_that_differs(tmp_path):
    runs = [make_workdir(tmp_path / rule, rule=rule) for rule in ("accumulate", "replace")]
    html = write(runs).read_text()
    assert (runs[0] / "overlay.html").is_file()
    assert "<h2>accumulate</h2>" in html
    assert "<h2>replace</h2>" in html
    stems = {png.stem for png in (runs[0] / "overlay").glob("*.png")}
    assert {
        "curves_accuracy",
        "run1_samples",
        "run2_samples",
        "run1_groups",
        "run2_groups",
    } <= stems


def test_labels_are_always_different(tmp_path):
    first = read_run(make_workdir(tmp_path / "a"))
    second = read_run(make_workdir(tmp_path / "b"))
    same_folder = read_run(make_workdir(tmp_path / "c" / "a"))
    third = read_run(make_workdir(tmp_path / "d", seed=1))
    assert config_diff.labels([first, second]) == ("a", "b")
    assert len(set(config_diff.labels([first, second, same_folder]))) == 3
    assert config_diff.labels([first, second, third]) == ("seed=0 (a)", "seed=0 (b)", "seed=1")
    wordy = copy.deepcopy(third)
    wordy.config["note"] = "x" * 80
    assert config_diff.labels([first, wordy]) == ("run 1", "run 2")
    assert config_diff.differences([first, wordy])["note"] == ("not set", "x" * 80)


def test_logging_and_report_fields_do_not_tell_runs_apart(tmp_path):
    runs = [read_run(make_workdir(tmp_path / name)) for name in ("a", "b")]
    runs[1].config["log"] = {"every_steps": 7}
    assert config_diff.differences(runs) == {}
    assert config_diff.labels(runs) == ("a", "b")


def test_runs_that_differ_in_the_seed_alone_are_told_as_chance(tmp_path):
    said = said_of(*(make_workdir(tmp_path / str(seed), seed=seed) for seed in (0, 1)))
    assert "accuracy lies between 0.690 and 0.700" in said
    assert "differ in the seed alone" in said


@pytest.mark.parametrize(("groups", "nested"), [(5, False), (3, True), (12, False)])
def test_any_number_of_groups_crossed_or_nested(tmp_path, groups, nested):
    workdir = make_workdir(tmp_path / "run", generations=2, groups=groups, nested=nested)
    html = write([workdir]).read_text()
    assert {"groups", "recall"} <= {png.stem for png in (workdir / "report").glob("*.png")}
    assert ("not defined for nested groups" in html) == nested


def test_one_generation_shows_no_trend(tmp_path):
    said = said_of(make_workdir(tmp_path / "run", generations=1))
    assert "In generation 0: accuracy 0.900" in said
    assert "it shows no trend" in said


def test_without_generation_0_there_is_no_reference(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    shutil.rmtree(workdir / "gen_0000")
    assert read_run(workdir).reference is None
    assert "From generation 1 to generation 2" in write([workdir]).read_text()


def test_a_hole_among_the_generations_is_told(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=4)
    shutil.rmtree(workdir / "gen_0002")
    assert "gen_0002 is missing" in write([workdir]).read_text()


def test_null_is_nan_and_absent_is_not(tmp_path):
    generation = read_run(make_workdir(tmp_path / "run", generations=1)).last
    assert math.isnan(generation.value("metrics", "demographic_parity_difference"))
    assert generation.value("metrics", "nothing_like_it") is None


def test_a_weaker_record_is_announced(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    edit_record(workdir, 2, lambda record: record.update(exact=False, split="validation"))
    edit_record(workdir, 2, lambda record: record["metrics"].update(undefined_cells=2.0))
    said = " ".join([said_of(workdir), *caveats(read_run(workdir))])
    assert "Generation 2: marked not exact" in said
    assert "its numbers are not final" in said
    assert "Subgroups without validation images: 2" in said


def _not_a_run(tmp_path: Path) -> list[str]:
    return [str(tmp_path)]


def _unfinished(tmp_path: Path) -> list[str]:
    workdir = make_workdir(tmp_path / "run", generations=1)
    (workdir / "gen_0000" / "record.json").unlink()
    return [str(workdir)]


def _two_sources(tmp_path: Path) -> list[str]:
    return [
        str(make_workdir(tmp_path / source, 1, source=source)) for source in ("digits", "mnist")
    ]


def _twice(tmp_path: Path) -> list[str]:
    return [str(make_workdir(tmp_path / "run", 1))] * 2


def _wrong_out(tmp_path: Path) -> list[str]:
    return [str(make_workdir(tmp_path / "run", 1)), "--out=report.pdf"]


def _unknown_flag(tmp_path: Path) -> list[str]:
    return [str(make_workdir(tmp_path / "run", 1)), "--dpi=3"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (_not_a_run, "config.json is needed"),
        (_unfinished, "gen_0000/record.json is needed"),
        (_two_sources, "data.source: 'digits'"),
        (_twice, "given more than once"),
        (_wrong_out, "--out: 'report.pdf'"),
        (_unknown_flag, "--dpi=3"),
        (lambda _: [], "WORKDIR"),
    ],
)
def test_a_mistake_ends_in_one_line_and_2(tmp_path, capsys, arguments, names):
    assert main(arguments(tmp_path)) == UsageError.exit_code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert names in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_a_damaged_record_ends_in_1(tmp_path, capsys):
    workdir = make_workdir(tmp_path / "run", 1)
    (workdir / "gen_0000" / "record.json").write_text("{")
    assert main([str(workdir)]) == RunError.exit_code == 1
    assert "record.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("data"),
        lambda record: record["data"].pop("aligned_group"),
        lambda record: record["samples"].pop("joint"),
        lambda record: record["pool"].update(joint=[[1]]),
        lambda record: record["metrics"].update(accuracy={"mean": 1}),
        lambda record: record.update(metrics=None),
    ],
)
def test_a_record_of_another_version_ends_in_1(change, tmp_path, capsys):
    workdir = make_workdir(tmp_path / "run", 1)
    edit_record(workdir, 0, change)
    assert main([str(workdir)]) == RunError.exit_code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {workdir}/gen_0000/record.json: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["config.json", "gen_0000/record.json"])
@pytest.mark.parametrize("text", ["[]", "null"])
def test_json_that_is_no_object_ends_in_1(name, text, tmp_path, capsys):
    workdir = make_workdir(tmp_path / "run", 1)
    (workdir / name).write_text(text)
    assert main([str(workdir)]) == 1
    assert f"{name}: damaged" in capsys.readouterr().err


def test_a_control_is_shown_without_drawn_images(tmp_path):
    workdir = make_workdir(tmp_path / "run", 2)
    for g in range(2):
        edit_record(workdir, g, lambda record: record.update(samples=None, fidelity=None))
        (workdir / f"gen_{g:04d}/samples.npz").unlink()
    assert "samples.npz: missing" not in write([workdir]).read_text()
    shutil.rmtree(workdir / "gen_0000")
    assert "generation 1" in write([workdir]).read_text()


def test_the_command_prints_the_path_and_imports_no_jax(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    code = (
        "import sys; from selfloop_jax.report.__main__ import main; code = main(sys.argv[1:]);"
        "assert not {'jax', 'flax', 'matplotlib.pyplot'} & set(sys.modules); sys.exit(code)"
    )
    out = tmp_path / "folder" / "page.html"
    command = [sys.executable, "-W", "error", "-c", code, str(workdir), f"--out={out}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    assert (tmp_path / "folder" / "page" / "samples.png").is_file()
