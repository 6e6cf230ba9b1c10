"""Tests sweeps of many runs: order, resuming, and failures that do not stop the others."""

import subprocess
import sys
import time
from pathlib import Path

import runs

from selfloop_jax import sweep

ROOT = runs.ROOT


CONFIG = """
from selfloop_jax import config as configs

def get_config(arg=""):
    configs.parse_arg(arg, ("first", "second"))
    config = configs.default()
    config.loop.generations = 1
    config.loop.control = "no_synthetic"
    config.data.bias.kind = "unbiased"
    config.classifier.network = "lenet"
    config.classifier.steps = 4
    config.measure.replicates = 20
    return config

def sweep(out):
    yield [("one", "first", {"seed": 0}), ("broken", "first", {"classifier.steps": 0})]
    yield [("two", "second", {"seed": 1, "loop.branch_from": ""})]
"""


def test_runs_start_in_order_once_and_a_failure_is_reported(tmp_path, capsys):
    config, out = tmp_path / "tiny.py", tmp_path / "out"
    config.write_text(CONFIG)
    arguments = [str(config), f"--out={out}", "--jobs=2"]
    assert sweep.main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["one", "broken", "two", "failed"]
    assert "failed with exit code 2" in said[1]
    assert said[3].startswith("failed: broken: error: classifier.steps = 0")
    assert (out / "one/gen_0000/record.json").exists()
    assert (out / "two/gen_0000/record.json").exists()
    before = (out / "one.log").read_text()
    assert sweep.main(arguments) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "broken",
        "failed",
    ]
    assert (out / "one.log").read_text() == before
    config.write_text(CONFIG.replace("generations = 1", "generations = 2"))  # asks for more
    sweep.main(arguments)
    assert (out / "one/gen_0001/record.json").exists()


def test_a_terminated_sweep_stops_its_runs(tmp_path):
    config, out = tmp_path / "tiny.py", tmp_path / "out"
    config.write_text(CONFIG.replace("classifier.steps = 4", "classifier.steps = 100_000"))
    command = [sys.executable, "-m", "selfloop_jax.sweep", str(config), f"--out={out}", "--jobs=1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = out / "one.log"
    for _ in range(600):
        if log.exists() and (out / "one" / "metrics.jsonl").exists():
            break
        time.sleep(0.2)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert said.splitlines()[-1] == "stopped; the same command resumes"
    assert "the same command resumes" in log.read_text()
    assert not (out / "two").exists()


def test_a_usage_error_is_one_line(tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG)
    broken = tmp_path / "broken.txt"
    broken.write_text("import nothing_like_it")
    for arguments, named in (
        ([str(tmp_path / "missing.py")], "no such file"),
        ([str(config), "--lists=response"], "--lists=response: allowed are functions"),
        ([str(config), "--lists=get_config"], "--lists=get_config: allowed are functions"),
        ([str(broken)], "--lists=sweep: allowed are functions"),
        ([str(config), "--jobs=0"], "--jobs=0"),
        ([], "usage: CONFIG.py"),
    ):
        assert sweep.main(arguments) == 2
        assert named in capsys.readouterr().err


def test_the_study_lists_every_arm_after_what_it_needs():
    config = ROOT / "configs" / "digits_study.py"
    for name, count in (("sweep", 132), ("response", 48)):
        stages, known = list(sweep.stages(config, name, Path("out"))), set()
        for stage in stages:
            for _, _, overrides in stage:
                for field in ("loop.branch_from", "loop.control_of"):
                    assert overrides.get(field, "").removeprefix("out/") in {"", *known}
            known |= {run for run, _, _ in stage}
        assert len(known) == sum(map(len, stages)) == count
