"""Tests sweeps of many runs: order, resuming, and failures that do not stop the others."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
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
    config.diffusion.unet.multipliers = (1,)
    config.diffusion.steps = 4
    config.sample.count = 50
    config.sample.steps = 2
    config.classifier.network = "lenet"
    config.classifier.steps = 4
    config.data.train_size = 500 if "first" in arg else 600
    config.measure.replicates = 20
    return config

def sweep(out):
    yield [("one", "first", {"seed": 0}), ("broken", "first", {"data.train_size": 9_999})]
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
    assert said[3].startswith("failed: broken: error: data.train_size = 9999")
    assert (out / "one/gen_0000/record.json").exists()
    assert (out / "two/gen_0000/record.json").exists()
    before = (out / "one.log").read_text()
    assert sweep.main(arguments) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "broken",
        "failed",
    ]
    assert (out / "one.log").read_text() == before
    # For the report, which names what is missing.
    assert json.loads((out / "listed_runs.json").read_text()) == {"sweep": ["one", "broken", "two"]}


@pytest.mark.parametrize(
    ("runs_", "wanted"),
    [
        ('[[("../escape", "first", {})]]', "run '../escape': must be a name that can be a folder"),
        ('[[("/abs", "first", {})]]', "run '/abs': must be a name"),
        ('[[("a//b", "first", {})]]', "run 'a//b': must be a name"),
        ('[[("", "first", {})]]', "run '': must be a name"),
        ('[[("a\\nb", "first", {})]]', r"run 'a\nb': must be a name"),
        ('[[("one.log", "first", {})]]', "run 'one.log': must be a name"),
        ('[[("listed_runs", "first", {})]]', "run 'listed_runs': must be a name"),
        ('[[(1, "first", {})]]', "runs must be (name, argument, overrides), not (1, 'first', {})"),
        ('[[("a", None, {})]]', "runs must be (name, argument, overrides)"),
        ('[[("a", "first")]]', "runs must be (name, argument, overrides)"),
        ('[["abc"]]', "runs must be (name, argument, overrides)"),
        ("[[]]", "it lists none"),
        ("[]", "it lists none"),
        ("None", "must be a function"),
        ('[[("a", "first", {}), ("a", "second", {})]]', "run a: must be listed once"),
        ('[[("a", "first", {}), ("a", "first", {})]]', "run a: must be listed once"),
        ('[[("a", "first", {})], [("a", "first", {"seed": 1})]]', "run a: must be listed once"),
        ('[[("a", "first", {}), ("a/b", "first", {})]]', "run a/b: must not lie inside"),
        ('[[("a", "third", {})]]', "what follows the colon must be first | second"),
        ('[[("a", "first", {"sede": 1})]]', "sede: unknown field; did you mean seed?"),
        ('[[("a", "first", {"seed": -1})]]', "run a of CONFIG: seed = -1: must be from 0"),
        ('[[("a", "first", {"seed": "x"})]]', "run a of CONFIG: flag --config.seed=x: invalid"),
        ('[[("a", "first", {"data": 1})]]', "run a of CONFIG: data = 1: is a section"),
        (
            '[[("a", "first", {"classifier.steps": 0})]]',
            "run a of CONFIG: classifier.steps = 0: must",
        ),
    ],
)
def test_a_wrong_list_is_named_before_any_run_starts(tmp_path, commands, capsys, runs_, wanted):
    config = tmp_path / "wrong.py"
    text = CONFIG[: CONFIG.index("def sweep")]
    sound = '    yield [("sound", "first", {})]\n' if "[[(" in runs_ else ""
    config.write_text(f"{text}def sweep(out):\n{sound}    yield from {runs_}\n")
    assert sweep.main([str(config), f"--out={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert wanted.replace("CONFIG", str(config)) in line
    assert not commands
    assert not (tmp_path / "out").exists()


def test_a_name_with_a_slash_makes_a_folder(tmp_path, commands):
    config, out = tmp_path / "slash.py", tmp_path / "out"
    config.write_text(CONFIG.replace('"one"', '"rho=0.5/seed0"').replace('"broken"', '"other"'))
    assert sweep.main([str(config), f"--out={out}", "--lists=sweep"]) == 0
    assert f"--workdir={out}/rho=0.5/seed0" in commands
    assert (out / "rho=0.5" / "seed0.json").exists()
    assert (out / "rho=0.5" / "seed0.log").exists()


@pytest.fixture
def commands(monkeypatch) -> list[str]:
    """The workdirs of the runs that a sweep starts; none is really made, and all succeed."""
    started = []

    def wait(command, log):
        started.append(next(word for word in command if word.startswith("--workdir=")))
        return 0

    monkeypatch.setattr(sweep, "_wait", wait)
    return started


def test_a_run_is_made_again_only_where_its_config_changed(tmp_path, commands):
    neighbour = tmp_path / "neighbour_of_sweep.py"
    neighbour.write_text("STEPS = 4")
    text = CONFIG.replace("as configs\n", "as configs\nfrom pathlib import Path\n")
    text = text.replace(
        "classifier.steps = 4",
        f"classifier.steps = int(Path({str(neighbour)!r}).read_text().split()[-1])",
    )
    config, out = tmp_path / "tiny.py", tmp_path / "out"
    config.write_text(text)
    arguments = [str(config), f"--out={out}", "--jobs=1"]
    assert sweep.main(arguments) == 0
    assert len(commands) == 3
    config.write_text(text + "\n# a remark\n")
    assert sweep.main(arguments) == 0
    assert len(commands) == 3
    # What the file takes from elsewhere is part of the config.
    neighbour.write_text("STEPS = 8")
    assert sweep.main(arguments) == 0
    assert len(commands) == 6
    # A run is continued where only more generations are asked for.
    config.write_text(text.replace("generations = 1", "generations = 2"))
    assert sweep.main(arguments) == 0
    assert len(commands) == 9


def test_a_flag_of_the_command_holds_for_every_run(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(sweep, "_wait", lambda command, log: commands.append(command) or 0)
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG)
    arguments = [str(config), f"--out={tmp_path / 'out'}", "--jobs=1"]
    assert sweep.main([*arguments, "--config.data.archive_dir=/some where"]) == 0
    assert len(commands) == 3
    assert all("--config.data.archive_dir=/some where" in command for command in commands)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.seed=3", "must not be a field that run one sets itself"),
        ("--config.data.archive=3", "must be a field of"),
        ("--config.data=3", "must be a field of"),
        ("--config.data.train_size=9", "in which listed runs differ: 500 and 600"),
        ("--archive_dir=3", "unrecognized argument"),
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(flag, said, tmp_path, commands, capsys):
    config, out = tmp_path / "tiny.py", tmp_path / "out"
    config.write_text(CONFIG)
    assert sweep.main([str(config), f"--out={out}", flag]) == 2
    error = capsys.readouterr().err
    assert flag in error
    assert said in error
    assert len(error.splitlines()) == 1
    assert commands == []
    assert not out.exists()


def test_a_damaged_note_of_a_complete_run_is_written_again(tmp_path, commands):
    config, out = tmp_path / "tiny.py", tmp_path / "out"
    config.write_text(CONFIG)
    arguments = [str(config), f"--out={out}", "--jobs=1"]
    assert sweep.main(arguments) == 0
    before = (out / "one.json").read_text()
    (out / "one.json").write_text("{")
    assert sweep.main(arguments) == 0
    assert commands[3:] == [f"--workdir={out / 'one'}"]
    assert (out / "one.json").read_text() == before


def test_a_run_that_starts_as_the_sweep_is_told_to_end_is_ended(tmp_path, monkeypatch):
    stopped = threading.Event()
    monkeypatch.setattr(sweep, "_stopped", stopped)
    start = subprocess.Popen

    def start_and_signal(*arguments, **options):
        process = start(*arguments, **options)
        stopped.set()  # after the start, before the sweep knows the process
        return process

    monkeypatch.setattr(sweep.subprocess, "Popen", start_and_signal)
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    assert sweep._wait(command, subprocess.DEVNULL) == -signal.SIGTERM


def test_a_wrong_argument_ends_the_sweep_before_any_run(tmp_path, commands, capsys):
    config = tmp_path / "tiny.py"
    for right, wrong, named in (
        ('"two", "second"', '"two", "third"', "what follows the colon"),
        ('"two", "second"', '"two", 3', "runs must be (name, argument, overrides)"),
        ("= 1\n", "= 1 / 0\n", "get_config must return a config (ZeroDivisionError"),
    ):
        config.write_text(CONFIG.replace(right, wrong))
        assert sweep.main([str(config), f"--out={tmp_path / 'out'}"]) == 2
        said = capsys.readouterr().err
        assert named in said
        assert len(said.splitlines()) == 1
    assert commands == []


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
        ([str(config), "--lists=response"], "--lists=response: must be a function"),
        ([str(config), "--lists=get_config"], "--lists=get_config: must be a function"),
        ([str(broken)], "--lists=sweep: must be a function"),
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
