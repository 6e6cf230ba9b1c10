"""Reading workdirs: numbers, tables, example images, losses, and what is missing or damaged."""

import math
import shutil

import numpy as np
import pytest
from workdirs import edit, edit_record, loss_line, make_workdir, set_metric

from selfloop_jax.analysis.runs import read_run, read_runs
from selfloop_jax.errors import RunError, UsageError


def test_numbers_keep_their_parts(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=1)
    parts = {"low": 0.6, "high": None, "null": [0.1, 0.2, 0.3], "p": 0.02, "baseline": 0.4}
    set_metric(workdir, 0, "fid", 0.7, **parts)
    number = read_run(workdir).last.metrics["fid"]
    found = dict(number.parts())
    assert math.isnan(found.pop("high"))
    assert found == {
        **{"value": 0.7, "low": 0.6, "p": 0.02, "baseline": 0.4},
        **{"null05": 0.1, "null50": 0.2, "null95": 0.3},
    }


def test_null_is_nan_and_an_absent_number_is_none(tmp_path):
    generation = read_run(make_workdir(tmp_path / "run", generations=1)).last
    assert math.isnan(generation.value("demographic_parity_difference"))
    assert generation.value("nothing_like_it") is None


def test_tables_become_arrays(tmp_path):
    generation = read_run(make_workdir(tmp_path / "run", generations=1)).last
    np.testing.assert_array_equal(generation.pool_counts, [[10, 0], [0, 10], [10, 0]])
    np.testing.assert_array_equal(generation.generated_counts, generation.pool_counts)
    np.testing.assert_array_equal(np.isnan(generation.recall), generation.pool_counts == 0)


def test_examples_are_the_first_images_by_id(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=1)
    pixels = np.arange(6, dtype=np.uint8).repeat(3).reshape(6, 1, 1, 3)
    label = np.array([0, 0, 0, 0, 0, 1])
    ids = np.array([5, 4, 3, 2, 1, 0])
    np.savez(workdir / "gen_0000/samples.npz", pixels=pixels, label=label, group=label, id=ids)
    zeros, ones, twos = read_run(workdir).last.by_class
    assert zeros[:, 0, 0, 0].tolist() == [4, 3, 2]
    assert ones[:, 0, 0, 0].tolist() == [5]
    assert len(twos) == 0


def test_losses_of_a_resumed_run_take_the_last_line_of_a_step(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=1)
    with (workdir / "metrics.jsonl").open("ab") as lines:
        lines.write(loss_line(0, "diffusion", 2, 7.0).encode() + b"\n")
        lines.write(b'{"generation":0,"phase":"diffusion","step":1,"accuracy":0.5}\n[]\n\xff\n')
        lines.write(loss_line(5, "diffusion", 1, 9.0).encode() + b"\n")  # it has no record
        lines.write(b'{"generation":0,"phase":"diffusion","step":3,"lo')
    losses = read_run(workdir).losses["diffusion"]
    assert set(losses) == {0}
    np.testing.assert_allclose(losses[0], [[1, 1], [2, 7], [3, 1 / 3]])


def test_unfinished_and_missing_generations_are_noted(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=4)
    (workdir / "gen_0003/record.json").unlink()
    shutil.rmtree(workdir / "gen_0001")
    run = read_run(workdir)
    assert [generation.number for generation in run.generations] == [0, 2]
    assert "gen_0003 has no record.json: not finished, left out." in run.notes
    assert "gen_0001 is missing: curves are interrupted there." in run.notes


def test_generations_are_in_numeric_order(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=2)
    shutil.copytree(workdir / "gen_0001", workdir / "gen_10000")
    shutil.move(workdir / "gen_0000", workdir / "gen_9999")
    edit_record(workdir, 9999, lambda record: record.update(generation=9999))
    edit_record(workdir, 10000, lambda record: record.update(generation=10000))
    assert [g.number for g in read_run(workdir).generations] == [1, 9999, 10000]


def test_missing_and_damaged_arrays_are_noted(tmp_path):
    workdir = make_workdir(tmp_path / "run", generations=3)
    (workdir / "real.npz").unlink()
    edit_record(workdir, 1, lambda record: record["digests"].update({"samples.npz": "00"}))
    (workdir / "gen_0002/samples.npz").write_bytes(b"PK cut off")
    run = read_run(workdir)
    assert [g.by_class is None for g in run.generations] == [False, True, True]
    assert run.real_by_class is None
    notes = " ".join(run.notes)
    assert "real.npz: missing; figures that need it are left out." in notes
    assert "gen_0001/samples.npz: damaged" in notes
    assert "gen_0002/samples.npz: damaged" in notes


def test_real_counts_need_generation_0(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    assert read_run(workdir).real_counts.sum() == 30
    shutil.rmtree(workdir / "gen_0000")
    assert read_run(workdir).real_counts is None


def test_a_control_has_no_generated_images(tmp_path):
    run = read_run(make_workdir(tmp_path / "run", 1, control="fresh_real"))
    assert run.last.generated_counts is None
    assert run.last.by_class is None
    assert run.notes == ()


def test_a_workdir_of_version_0_1_is_refused(tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    edit(workdir / "manifest.json", lambda entries: entries[0].pop("selfloop_jax"))
    with pytest.raises(UsageError) as error:
        read_run(workdir)
    expected = "written by selfloop_jax 0.1; this version reads 0.2 and later"
    assert str(error.value) == f"{workdir}: {expected}"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("data"),
        lambda record: record["data"].pop("aligned_group"),
        lambda record: record["data"].update(aligned_group=[0]),
        lambda record: record["tables"].update(generated_counts=[[1]]),
        lambda record: record["tables"].update(recall={"value": [["a"]]}),
        lambda record: record["pool"].update(counts=[[1]]),
        lambda record: record["pool"].update(counts=None),
        lambda record: record["metrics"].update(accuracy=0.9),
        lambda record: record["metrics"].update(accuracy={"mean": 1}),
        lambda record: record["metrics"].update(accuracy={"value": 1, "null": [1]}),
        lambda record: record.update(metrics=None),
    ],
)
def test_a_damaged_record_is_named(change, tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    edit_record(workdir, 0, change)
    with pytest.raises(RunError, match=r"gen_0000/record\.json: ") as error:
        read_run(workdir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "gen_0000/record.json"])
@pytest.mark.parametrize("text", ["[]", "null", "{"])
def test_json_without_an_object_is_damaged(name, text, tmp_path):
    workdir = make_workdir(tmp_path / "run", 1)
    (workdir / name).write_text(text)
    with pytest.raises(RunError, match=f"{name}: damaged"):
        read_run(workdir)


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"config\.json is needed"):
        read_run(tmp_path)
    workdir = make_workdir(tmp_path / "run", 1)
    (workdir / "gen_0000/record.json").unlink()
    with pytest.raises(UsageError, match=r"gen_0000/record\.json is needed"):
        read_run(workdir)
    with pytest.raises(UsageError, match="WORKDIR: none given"):
        read_runs([])


def test_runs_that_cannot_be_overlaid_are_refused(tmp_path):
    first = make_workdir(tmp_path / "a", 1)
    other = make_workdir(tmp_path / "b", 1, source="mnist")
    with pytest.raises(UsageError, match=r"data\.source: 'digits'"):
        read_runs([first, other])
    with pytest.raises(UsageError, match="given more than once"):
        read_runs([first, first])
