"""The folder of a run: which generations it holds."""

import shutil

import pytest
from workdirs import make_workdir

from selfloop_jax.analysis.runs import read_run
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import workdir


def test_half_a_copied_generation_is_none(tmp_path):
    path = make_workdir(tmp_path / "run", generations=2)
    # What an interrupted `copy_generation` leaves, and a folder of the user's own.
    shutil.copytree(path / "gen_0000", path / "gen_0002.tmp")
    shutil.copytree(path / "gen_0000", path / "gen_old")
    assert list(workdir.generation_dirs(path)) == [0, 1]
    assert workdir.last_committed(path) == 1
    assert [generation.number for generation in read_run(path).generations] == [0, 1]


def test_the_last_committed_generation_has_a_record(tmp_path):
    path = make_workdir(tmp_path / "run", generations=3)
    (path / "gen_0002" / "record.json").unlink()
    assert list(workdir.generation_dirs(path)) == [0, 1, 2]
    assert workdir.last_committed(path) == 1
    assert workdir.generation_dirs(tmp_path / "nowhere") == {}
    with pytest.raises(UsageError, match="no run with a finished generation"):
        workdir.last_committed(tmp_path)
