"""Tests benchmarks/device/: the runner and its programs, on small work."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
import runs

from benchmarks import presets
from benchmarks.device import __main__ as device
from benchmarks.device import facts, hard, ops, quickstart
from selfloop_jax.training import step

PROGRAMS = {
    "prints": "print('a word'); print('{\"case\": 1}')",
    "fails": "print('{\"case\": 2}', flush=True); raise SystemExit('error: no such device')",
    # Its child holds the output open, as a program of a benchmark would.
    "hangs": """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print('{"child": %d}' % child.pid, flush=True)
time.sleep(600)
""",
}


def steps(folder: Path, *names: str, limit: float = 60) -> list[device.Step]:
    """Steps that run PROGRAMS, which are written to `folder`."""
    environment = {"PYTHONPATH": str(folder)}
    for name in names:
        (folder / f"{name}.py").write_text(PROGRAMS[name])
    return [device.Step(name, (name,), limit, environment) for name in names]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def test_results_are_lines_and_the_rest_is_in_the_log(tmp_path, capfd):
    runner = device.Runner(tmp_path, 60)
    for program in steps(tmp_path, "prints", "fails"):
        runner.run(program)
    first, ended, second, failed = lines(tmp_path)
    assert first == {"part": "prints", "case": 1}
    assert (ended["exit_code"], "problem" in ended) == (0, False)
    assert second == {"part": "fails", "case": 2}
    assert (failed["exit_code"], failed["problem"]) == (1, "failed: see log.txt")
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == lines(tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "a word" in log
    assert "error: no such device" in log


def test_a_program_beyond_its_limit_ends_with_its_children(tmp_path):
    runner = device.Runner(tmp_path, 60)
    (program,) = steps(tmp_path, "hangs", limit=1)
    runner.run(program)
    started, ended = lines(tmp_path)
    assert ended["problem"] == "ran out of its limit"
    assert ended["seconds"] < 20
    assert gone(started["child"])


def test_what_has_no_time_left_is_a_line(tmp_path):
    runner = device.Runner(tmp_path, device.LEAST / 2)
    (program,) = steps(tmp_path, "prints")
    runner.run(program)
    (line,) = lines(tmp_path)
    assert (line["part"], line["skipped"]) == ("prints", "5 s left")


def test_a_signal_ends_the_program_that_is_running(tmp_path):
    steps(tmp_path, "hangs")
    program = f"""
from benchmarks.device import __main__ as device
step = device.Step("facts", ("hangs",), 60, {{"PYTHONPATH": {str(tmp_path)!r}}})
device.steps = lambda *_: [step]
device.main(["--out={tmp_path}", "--parts=facts"])
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.PIPE, text=True) as process:
        child = json.loads(process.stdout.readline())["child"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert gone(child)


@pytest.mark.parametrize("listed", [device.steps, device.dry_steps])
def test_every_part_has_a_program(listed, tmp_path):
    found = list(listed(tmp_path, "peers/bin/python"))
    assert {one.part for one in found} == set(device.NAMES)
    assert all(importlib.util.find_spec(one.arguments[0]) for one in found)
    assert "peers" not in {one.part for one in listed(tmp_path, None)}


def test_an_unknown_part_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        device.main([f"--out={tmp_path}", "--parts=facts,speed"])
    assert "speed is none of facts, quickstart" in capsys.readouterr().err


def test_facts_of_this_machine():
    found = list(facts.lines(size=64, mib=1))
    assert [line["what"] for line in found] == [
        *("environment", "memory"),
        *["matrix product"] * 3,
        "copies",
    ]
    assert "jax" in found[0]
    assert all(line["relative_error"] < 1e-5 < line["tflops"] for line in found[2:5])
    assert found[5]["to_host_gb_s"] > 0


def test_operations_and_errors_are_lines():
    named = {(one.name, one.way): one for one in ops.operations(small=True)}
    for way in ("one-hot product", "scatter"):
        assert ops.measure(named["embedding", way], 1)["milliseconds"] > 0
    assert "cuDNN" in ops.measure(named["attention", "cudnn"], 1)["error"]


def brightness(key):
    return {"params": {"value": jnp.zeros(1000)}}


def brightness_loss(params, batch_stats, batch, key):
    pixels = batch["pixels"].astype(jnp.float32)
    return jnp.mean((pixels - params["value"].mean()) ** 2), (batch_stats, {})


def make_brightness(net, process, section, side, steps_per_dispatch):
    """Stands for `generator.make_trainer`: a network that compiles at once, unless it has remat."""
    if section.unet.remat:
        raise MemoryError("no memory")
    parts = section.microbatches
    return step.make_trainer(
        brightness, brightness_loss, section, steps_per_dispatch, microbatches=parts
    )


def test_every_variant_of_the_large_network_is_compiled_and_timed(monkeypatch):
    monkeypatch.setattr(hard.generator, "make_trainer", make_brightness)
    monkeypatch.setattr(hard.speed, "training_flops", lambda config, case: 1e6)
    found = list(hard.lines(presets.preset("quick", devices=4), [16, 32], rounds=1))

    def variants(lines):
        return [(line["batch"], line["remat"], line["microbatches"]) for line in lines]

    failed = [line for line in found if "error" in line]
    compiled = [line for line in found if "temporary_gib" in line]
    timed = [line for line in found if "images_per_second" in line]
    assert len(failed + compiled + timed) == len(found) == 7
    assert variants(failed) == [(32, True, 1)]
    assert failed[0]["error"] == "MemoryError: no memory"
    expected = [(16, False, 1), (32, False, 1), (32, False, 4)]
    assert sorted(variants(compiled)) == variants(timed) == expected
    assert all(line["images_per_second"] > 0 for line in timed)


def test_generations_of_a_run_are_lines(finished):
    found = list(quickstart.generations(finished, 3))
    assert [line["generation"] for line in found] == [0, 1, 2]
    assert "diffusion" in found[0]["seconds"]
    assert 0 < found[0]["accuracy"] <= 1
