"""Single figures: panels and their captions, heat maps, pairs, bars and curves."""

import dataclasses
import warnings

import numpy as np
import pytest
from workdirs import edit, edit_record, make_arm, make_study, make_workdir, set_metric

from selfloop_jax.analysis import arms, drift, numbers, verdicts
from selfloop_jax.analysis.runs import read_run, read_runs
from selfloop_jax.measure.metrics import METRICS, Metric
from selfloop_jax.report import (
    bars,
    curves,
    foreground,
    forest,
    heatmaps,
    neighbours,
    sample_grid,
    strip,
    style,
    tables,
)
from selfloop_jax.report import drift as drift_figures
from selfloop_jax.report.panels import (
    PANELS,
    arrow_of,
    features_of,
    number_text,
    panels,
    title_of,
)
from selfloop_jax.runtime import store


def arms_of(run):
    return arms.arms(numbers.rows([run]))


def test_every_metric_is_in_one_panel_or_a_count():
    shown = [key for panel in PANELS for key in panel.keys]
    assert len(set(shown)) == len(shown)
    counts = [key for key, metric in METRICS.items() if metric.whole]
    assert set(shown) | set(counts) == set(METRICS)


def test_numbers_in_print():
    assert number_text(None) == "–"
    assert number_text(float("nan")) == "undefined"
    assert number_text(0.12345) == "0.123"
    assert number_text(0.0001) == "1.0e-04"
    assert number_text(30.0, whole=True) == "30"


def test_names_that_the_font_lacks_stay_apart(tmp_path):
    """As the empty boxes of missing letters two classes would look alike."""
    workdir = make_workdir(tmp_path / "run", 2)
    figures = []
    for name in ("\u732b", "\u72ac", "caf\u00e9"):
        for g in range(2):
            edit_record(
                workdir,
                g,
                lambda record, name=name: record["data"].update(classes=[name, "b", "c"]),
            )
        with warnings.catch_warnings(action="error"):
            figures.append(heatmaps.recall_map(read_run(workdir), "").png)
    assert len(set(figures)) == 3
    assert style.shown("\u732b caf\u00e9\n") == "\\u732b caf\u00e9\n"


def test_a_metric_from_outside_gets_a_panel_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "mine", Metric("mine", "my metric", "classifier", "lower"))
    workdir = make_workdir(tmp_path / "run", 2)
    for g in range(2):
        set_metric(workdir, g, "mine", 0.5)
        set_metric(workdir, g, "unregistered_one", 0.25)
    run = read_run(workdir)
    figure = curves.metric_curves(arms_of(run), run)[-1]
    assert figure.name == "curves_others"
    assert "my metric 0.500 to 0.500; unregistered one 0.250 to 0.250" in figure.alt
    rows = {row[0]: row[1:] for row in tables.metrics(run).rows}
    assert rows["my metric ↓"] == ("0.500", "0.500")
    assert (title_of("unregistered_one"), arrow_of("unregistered_one")) == ("unregistered one", "")
    assert panels(["accuracy", "mine"])[-1].keys == ("mine",)


def test_a_fid_names_the_network_of_its_features(tmp_path):
    workdirs = [make_workdir(tmp_path / name, 2, seed=seed) for seed, name in enumerate("ab")]
    config = store.read_json(workdirs[0] / "config.json")
    config["measure"] = {**config.get("measure", {}), "features": "inception"}
    store.write_json(workdirs[0] / "config.json", config)
    first, second = map(read_run, workdirs)
    assert tables.fidelity(first).header[1] == "FID (inception features)"
    assert tables.fidelity(second).header[1] == "FID (classifier features)"
    assert features_of(arms_of(first)) == "inception"
    # Two arms whose numbers cannot be compared.
    both = arms.arms(numbers.rows([first, second]))
    (figure,) = (f for f in curves.metric_curves(both, first) if f.name == "curves_fidelity")
    assert "FID (classifier or inception features)" in figure.alt
    assert "in classifier or inception features" in figure.caption


def captions(run) -> dict[str, str]:
    return {figure.name: figure.caption for figure in curves.metric_curves(arms_of(run), run)}


def test_captions_name_interval_null_and_baseline_where_they_are(tmp_path):
    found = captions(read_run(make_workdir(tmp_path / "run", 2)))
    assert "95 % interval over images, not over seeds" in found["curves_accuracy"]
    assert "null (groups permuted among the test images)" in found["curves_gaps"]
    assert "null (groups sampled with" in found["curves_composition"]
    assert "Dotted: baseline" in found["curves_fidelity"]
    assert "Dotted: baseline" not in found["curves_accuracy"]


def test_captions_name_the_level_that_the_record_names(tmp_path):
    workdir = make_workdir(tmp_path / "run", 2)
    edit_record(workdir, 1, lambda record: record.update(level=0.9))
    run = read_run(workdir)
    assert "90 % interval over images, not over seeds" in captions(run)["curves_accuracy"]
    assert "90 % interval over images" in tables.metrics(run).caption


def test_caption_explains_metrics_that_nested_groups_lack(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 2, groups=3, nested=True))
    assert "not defined for nested groups" in captions(run)["curves_gaps"]


def test_caption_explains_interrupted_lines(tmp_path):
    workdir = make_workdir(tmp_path / "run", 3)
    set_metric(workdir, 1, "accuracy", None)
    assert "Lines are interrupted" in captions(read_run(workdir))["curves_accuracy"]


@pytest.mark.parametrize(("groups", "nested"), [(2, False), (5, False), (3, True), (12, False)])
def test_heat_maps_for_any_number_of_groups(tmp_path, groups, nested):
    run = read_run(make_workdir(tmp_path / "run", 2, groups=groups, nested=nested))
    assert heatmaps.share_map(run, "").png.startswith(b"\x89PNG")
    assert heatmaps.recall_map(run, "").png.startswith(b"\x89PNG")


def test_corrected_and_annotator_maps_need_an_annotator(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    run = read_run(workdir)
    assert heatmaps.corrected_map(run, "") is None
    assert heatmaps.annotator_map(run, "") is None
    quality = {"split": "validation", "confusion": [[[8, 2], [0, 0]], [[1, 9], [5, 5]], []]}

    def annotate(record: dict) -> None:
        record["annotator"] = quality
        share = [[0.25, 0.75], [None, None], [0.5, 0.5]]
        record["tables"]["corrected_shares"] = {"share": share}

    edit_record(workdir, 0, annotate)
    run = read_run(workdir)
    assert heatmaps.corrected_map(run, "").name == "corrected"
    assert heatmaps.annotator_map(run, "").name == "annotator"


def test_sensitivity_needs_images_with_masks(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    assert foreground.sensitivity(read_run(workdir), "") is None
    noise = [{"sigma": 0.25, "rfs": 0.5}, {"sigma": 0.5, "rfs": None}]
    edit_record(workdir, 0, lambda record: record.update(foreground={"noise": noise}))
    assert foreground.sensitivity(read_run(workdir), "").name == "sensitivity"


def test_pairs_show_generated_images_with_their_neighbours(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 1))
    assert neighbours.pairs(run, "") is None
    images = np.zeros((4, 8, 8, 3), np.uint8)
    arrays = {"id": np.arange(4), "pixels": images, "neighbour": images, "distance": np.ones(4)}
    last = dataclasses.replace(run.last, neighbours=arrays)
    figure = neighbours.pairs(dataclasses.replace(run, generations=(last,)), "")
    assert figure.alt == "4 pairs of a generated and a real image."


def test_the_sample_grid_shows_the_share_of_the_majority_group(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 10))
    figure = sample_grid.sample_grid(run, "run1_")
    assert figure.name == "run1_samples"
    assert "most frequent group among the real images" in figure.caption
    assert "7 of 10 generations are shown" in figure.caption


def test_the_pool_figure_describes_its_bars(tmp_path):
    figure = bars.pool_bars(read_run(make_workdir(tmp_path / "run", 2)), "")
    assert "generation 0: 30 real of 30; generation 1: 30 real of 60" in figure.alt


def test_loss_captions_say_what_is_averaged_and_left_out(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 2))
    points = np.stack([np.arange(1, 500), np.ones(499)], axis=1)
    losses = {"diffusion": dict.fromkeys(range(10), points)}
    (figure,) = curves.loss_curves(dataclasses.replace(run, losses=losses), "")
    assert "averaged, to 120 points per line" in figure.caption
    assert "8 of 10 generations are shown" in figure.caption


def findings(workdirs) -> list[verdicts.Finding]:
    return verdicts.findings(arms.arms(numbers.rows(read_runs(workdirs))))


def test_the_forest_plot_has_every_finding_in_words(tmp_path):
    found = findings(make_study(tmp_path))
    figure = forest.forest(found, "forest")
    assert figure.png.startswith(b"\x89PNG")
    assert figure.alt.count("joint p") == len(found) == 4
    assert "accumulate, mean equal opportunity difference, inclusion against no_synthetic" in (
        figure.alt
    )
    assert "Grey band: the margin" in figure.caption


def test_the_forest_plot_grows_with_its_rows_and_copes_with_few_seeds(tmp_path):
    ratio = "disparate_impact_ratio_mean"
    workdirs = []
    for control, slope in (("none", 0.1), ("fresh_real", 0.0)):
        workdirs += make_arm(tmp_path, "replace", control, slope, seeds=range(2))
    one = forest.forest(findings(workdirs), "forest")
    assert "+0.200 [" in one.alt
    assert "Seeds needed" in one.caption
    for workdir in workdirs:
        metrics = ["equal_opportunity_difference_mean", ratio]
        edit(workdir / "config.json", lambda c, m=metrics: c["verdict"].update(metrics=m, margin=0))
    two = forest.forest(findings(workdirs), "forest")
    assert "mean disparate impact ratio" in two.alt
    assert "Grey band" not in two.caption
    (single,) = findings([w for w in workdirs if w.name.endswith("-0")])[:1]
    assert "undecided" in forest.forest([single], "forest").alt


def test_the_strip_begins_with_real_images_and_names_what_it_leaves_out(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 9))
    figure = strip.strip({"run": run})
    assert figure.alt.startswith("Strip of images: real, generation 0, generation 2")
    assert "6 of 9 generations are shown." in figure.caption
    four = strip.strip(dict.fromkeys("abcd", run) | {"e": dataclasses.replace(run, generations=())})
    assert "a row for each of the loops a; b; c" in four.alt
    assert "3 of 5 loops are shown." in four.caption


def test_a_control_has_no_strip(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 1, control="fresh_real"))
    assert strip.strip({"run": run}) is None


def test_a_strip_without_real_images_keeps_their_place(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    (workdir / "real.npz").unlink()
    assert strip.strip({"run": read_run(workdir)}).alt == "Strip of images: real, generation 0."


def test_the_coverage_is_shown_against_copy_machines(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 3))
    made, _ = drift.drifts(arms_of(run))
    figure = drift_figures.drift_figure(made)
    expected = (
        "In generation 2 the subgroup coverage is 1.000, inside the 95 % band of copy machines, "
        "1.000 to 1.000 (mean 1.000): no more and no fewer subgroups are lost than chance alone "
        "takes."
    )
    assert figure.alt == expected
    ((row,), header) = drift_figures.drift_table(made).rows, drift_figures.drift_table(made).header
    assert row[1:4] == ("1", "1.000 1.000 1.000", "1.000 1.000 1.000")
    assert row[-2:] == ("–", "–")
    assert len(row) == len(header)


def test_the_headline_figure_shows_three_metrics_at_most(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 2))
    figure = curves.headline(arms_of(run), run)
    assert "accuracy 0.900 to 0.800; mean equal opportunity difference" in figure.alt
    assert "bias-aligned share 0.700 to 0.700" in figure.alt
    assert curves.headline([], run) is None
