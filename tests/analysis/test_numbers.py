"""Rows of numbers and their CSV."""

import numpy as np
import pytest
from workdirs import GAP, edit, make_study, make_workdir

from selfloop_jax.analysis.numbers import as_csv, column, consistent, read_csv, rows, run_names
from selfloop_jax.analysis.runs import read_run, read_runs
from selfloop_jax.errors import UsageError


def test_a_row_has_every_number_of_its_record(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 2, seed=3))
    first, second = rows([run])
    assert (first["set"], first["run"], first["seed"]) == ("main", "run", 3)
    assert [first["generation"], second["generation"]] == [0, 1]
    assert second["metrics.accuracy"] == 0.77
    assert second["metrics.accuracy.low"] == pytest.approx(0.72)
    assert second[f"metrics.{GAP}.null95"] == 0.3
    assert second[f"metrics.{GAP}.p"] == 0.001
    assert second["metrics.fid.baseline"] == 0.5
    assert np.isnan(second["metrics.demographic_parity_difference"])
    assert "metrics.cas" not in second
    assert (second["pool.size"], second["pool.real"]) == (60, 30)
    assert second["pool.class_counts"].tolist() == [10, 10, 10]
    assert second["generated.aligned_counts"].tolist() == [10, 10, 10]
    assert second["generated.subgroup_counts"].tolist() == [10, 0, 0, 10, 10, 0]
    assert second["reserve.class_counts"].tolist() == [20, 20, 20]
    recall = run.generations[1].recall
    np.testing.assert_array_equal(second["recall.by_subgroup"], recall.ravel())
    assert second["seconds.diffusion"] == 2.0
    assert second["images_per_second.diffusion"] == 2500.0


def test_a_record_without_the_counts_of_its_splits_has_no_columns_of_them(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    edit(workdir / "gen_0000/record.json", lambda r: r["pool"].pop("reserve_counts"))
    (row,) = rows([read_run(workdir)])
    assert "reserve.class_counts" not in row
    assert "train.class_counts" in row


def test_settings_and_verdict_fields_are_in_every_row(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1, rule="replace")
    (row,) = rows([read_run(workdir)])
    assert row["setting.pool.rule"] == "replace"
    assert row["setting.loop.control"] == "none"
    assert row["setting.pool.alpha"] == "0.5"  # the default, of a config without the field
    assert row["verdict.metrics"] == GAP


def test_aligned_counts_leave_out_classes_without_an_aligned_group(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    edit(workdir / "gen_0000/record.json", lambda r: r["data"].update(aligned_group=[0, -1, 1]))
    (row,) = rows([read_run(workdir)])
    assert row["pool.aligned_counts"].tolist() == [10, 0, 0]


def test_config_columns_are_the_fields_that_differ_between_arms(tmp_path):
    paths = [make_workdir(tmp_path / str(i), 1, seed=i, rule=r) for i, r in enumerate("ab")]
    found = rows(read_runs(paths))
    fields = {name: found[0][name] for name in found[0] if name.startswith("config.")}
    assert fields == {"config.pool.rule": "a"}  # neither the seed nor branch_from


def test_runs_of_one_folder_name_are_numbered(tmp_path):
    paths = [make_workdir(tmp_path / folder / "run", 1) for folder in "ab"]
    assert run_names(read_runs(paths)) == ["run (1)", "run (2)"]


def test_the_csv_gives_back_the_rows(tmp_path):
    found = rows(read_runs(make_study(tmp_path, seeds=range(2))))
    path = tmp_path / "numbers.csv"
    path.write_text(as_csv(found))
    again = read_csv(path)
    assert len(again) == len(found) == 30
    for row, other in zip(found, again, strict=True):
        for name, value in row.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(other[name], value)
            elif isinstance(value, float):
                np.testing.assert_equal(other[name], value)
            else:
                assert other[name] == value, name


def test_absent_numbers_are_empty_and_undefined_ones_are_nan(tmp_path):
    paths = [
        make_workdir(tmp_path / "loop", 1),
        make_workdir(tmp_path / "control", 1, control="fresh_real"),
    ]
    header, loop, control = as_csv(rows(read_runs(paths))).splitlines()
    place = header.split(",").index(column("demographic_parity_difference"))
    assert loop.split(",")[place] == "nan"
    assert control.split(",")[place] == ""


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "set,run,seed,generation\nmain,x,one,2\n"])
def test_other_files_are_refused(text, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"x\.csv: no table of runs"):
        read_csv(path)


def test_a_csv_of_version_0_1_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("set,run,seed,generation,is.pool.rule\nmain,x,1,2,replace\n")
    with pytest.raises(UsageError, match=r"written by selfloop_jax 0\.1"):
        read_csv(path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pool.subgroup_counts", [9, 0, 0, 10, 10, 0], "pool.subgroup_counts do not add up to"),
        ("generated.subgroup_counts", [10, 10], "generated.subgroup_counts do not add up to"),
        ("train.aligned_counts", [30, 10, 10], "train.aligned_counts are more than"),
        ("pool.size", 20.0, "pool.class_counts add up to more than pool.size"),
    ],
)
def test_runs_whose_counts_do_not_add_up_are_left_out_with_a_line(name, value, said, tmp_path):
    found = rows(read_runs(make_study(tmp_path)))
    assert consistent(found) == (found, [])
    wrong = next(row for row in found if row["generation"] and name in row)
    wrong[name] = np.array(value, float) if isinstance(value, list) else value
    kept, lines = consistent(found)
    (line,) = lines
    assert line.startswith(f"{wrong['run']}: left out: generation {wrong['generation']}: {said}")
    assert {row["run"] for row in found} - {row["run"] for row in kept} == {wrong["run"]}
