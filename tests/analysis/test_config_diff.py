"""Config differences between runs and the labels made from them."""

import copy

from workdirs import make_workdir

from selfloop_jax.analysis import config_diff
from selfloop_jax.analysis.runs import read_run


def test_labels_are_distinct(tmp_path):
    first = read_run(make_workdir(tmp_path / "a", 1))
    second = read_run(make_workdir(tmp_path / "b", 1))
    same_folder = read_run(make_workdir(tmp_path / "c" / "a", 1))
    third = read_run(make_workdir(tmp_path / "d", 1))
    third.config["seed"] = 1
    assert config_diff.labels([first, second]) == ("a", "b")
    assert len(set(config_diff.labels([first, second, same_folder]))) == 3
    assert config_diff.labels([first, second, third]) == ("seed=0 (a)", "seed=0 (b)", "seed=1")


def test_long_labels_are_replaced_by_numbers(tmp_path):
    first = read_run(make_workdir(tmp_path / "a", 1))
    other = copy.deepcopy(first)
    other.config["note"] = "x" * 80
    assert config_diff.labels([first, other]) == ("run 1", "run 2")
    assert config_diff.differences([first, other]) == {"note": ("not set", "x" * 80)}


def test_logging_and_report_fields_are_no_differences(tmp_path):
    first = read_run(make_workdir(tmp_path / "a", 1))
    second = read_run(make_workdir(tmp_path / "b", 1))
    second.config["log"] = {"every_steps": 7}
    second.config["report"] = {"enabled": False}
    assert config_diff.differences([first, second]) == {}


def test_the_same_content_at_another_place_is_no_difference(tmp_path):
    runs = []
    for name, digest, weights in (("a", "x", "w"), ("b", "x", "w"), ("c", "y", "v")):
        run = read_run(make_workdir(tmp_path / name, 1))
        run.config["data"] |= {"folder": {"dir": f"/{name}"}, "cache_dir": f"/scratch/{name}"}
        run.config["classifier"] = {"init_from": f"/weights/{name}"}
        run.last.record["data"]["test_digest"] = digest
        run.last.record["initial_weights"] = {"classifier.init_from": weights}
        runs.append(run)
    assert config_diff.differences(runs[:2]) == {}
    assert config_diff.differences(runs) == {
        "data.folder.dir": ("/a", "/a", "/c"),
        "classifier.init_from": ("/weights/a", "/weights/a", "/weights/c"),
    }
    # Runs of before the digest are told apart by their paths.
    for run in runs:
        del run.last.record["data"]["test_digest"]
    assert config_diff.differences(runs[:2]) == {"data.folder.dir": ("/a", "/b")}
