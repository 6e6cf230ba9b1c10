"""Runs that another run's config names: those of version 0.1 are refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import runs


@pytest.fixture
def old(finished, tmp_path) -> Path:
    """A run as version 0.1 left it: its manifest does not name the package."""
    workdir = Path(shutil.copytree(finished, tmp_path / "old"))
    path = workdir / "manifest.json"
    entries = json.loads(path.read_text())
    del entries[0]["selfloop_jax"]
    path.write_text(json.dumps(entries))
    config = json.loads((workdir / "config.json").read_text())
    del config["classifier"]["adam_b2"]  # a field that it did not have
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


@pytest.mark.parametrize(
    ("field", "further"),
    [("loop.branch_from", []), ("loop.control_of", ["--config.loop.control=oracle_resample"])],
)
def test_a_run_of_version_0_1_is_named_with_its_field(field, further, old, tmp_path):
    done = runs.call_run(tmp_path / "run", f"--config.{field}={old}", *further)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {field} = {old}: written by selfloop_jax 0.1; this version reads 0.2 and later\n"
    )
    assert not (tmp_path / "run").exists()
