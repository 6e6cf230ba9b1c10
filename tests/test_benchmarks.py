"""Tests benchmarks/: presets, cases, resident programs, profiles and tables."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import runs
from flax import linen as nn

from benchmarks import (
    cases,
    cifar20_readings,
    compare,
    coverage,
    drift,
    dynamics,
    gap_dynamics,
    lowering,
    mnist_readings,
    presets,
    profile,
    saves,
    speed,
    tables,
    variance,
)
from selfloop_jax import config as configs
from selfloop_jax.analysis.numbers import read_csv
from selfloop_jax.diffusion import processes
from selfloop_jax.measure.learning_curve import LearningCurve
from selfloop_jax.training import classifier


@pytest.mark.parametrize(
    ("name", "unet", "resnet"),
    [("quick", 173_875, 78_042), ("small", 1_124_899, 701_466), ("cifar", 35_746_947, 11_173_962)],
)
def test_presets_have_their_documented_numbers_of_parameters(name, unet, resnet):
    config = presets.preset(name)
    net, process = cases.generator.build(config.diffusion, presets.CLASSES, 0)
    side = config.data.image_size
    assert cases.generator.make_trainer(net, process, config.diffusion, side, 1).parameters == unet
    net = cases.classifier.build(config.classifier, presets.CLASSES)
    assert cases.classifier.make_trainer(net, config.classifier, side, 1).parameters == resnet


def test_settings_for_a_peer_are_plain_json():
    settings = json.loads(json.dumps(presets.for_peers(presets.preset("cifar", "bfloat16"))))
    assert settings["unet"]["multipliers"] == [1, 2, 2, 2]
    assert (settings["precision"], settings["sample_batch"]) == ("bfloat16", 128)


@pytest.mark.parametrize("case", ["classifier_train", "classifier_inference"])
def test_a_case_can_be_called_repeatedly(case):
    config = presets.preset("quick", devices=4)
    config = replace(
        config,
        classifier=replace(config.classifier, stages=(1,), width=4, batch=32),
        measure=replace(config.measure, batch=32),
    )
    built = cases.build(config, case, steps=2)
    assert built.images == (64 if case.endswith("train") else 32)
    for _ in range(2):
        built.call()


def test_a_case_dispatches_as_many_steps_as_a_run(monkeypatch):
    config = presets.preset("quick", devices=4)
    config = replace(
        config,
        classifier=replace(config.classifier, stages=(1,), width=4, batch=32),
        parallel=replace(config.parallel, steps_per_dispatch=2),
    )
    built = cases.build(config, "classifier_train", steps=3)
    assert (built.steps_per_dispatch, built.images) == (2, 4 * 32)
    built.call()
    assert {cases.steps_per_dispatch(presets.preset(name)) for name in presets.NAMES} == {1}
    monkeypatch.setattr(cases.environment, "device_info", lambda: {"platform": "gpu"})
    assert {cases.steps_per_dispatch(presets.preset(name)) for name in presets.NAMES} == {10}


def test_steps_of_a_call_do_not_depend_on_the_dispatch(monkeypatch):
    class Trial:
        """Trains on 3,200 images a second in batches of 32."""

        def __init__(self, steps):
            self.facts = {"images": 32 * steps, "steps_per_dispatch": steps}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def call(self):
            return 3200.0

    for steps_per_dispatch in (1, 10):
        trial = Trial(steps_per_dispatch)
        monkeypatch.setattr(compare, "ours", lambda *_, trial=trial: trial)
        assert compare.steps_of_a_call(None, "quick", "classifier_train", 1) == 70


def test_flops_grow_with_the_network():
    small, large = (presets.preset(name) for name in ("quick", "small"))
    for name in ("classifier_inference", "classifier_train"):
        count = speed.forward_flops if name.endswith("inference") else speed.training_flops
        assert 1e6 < count(small, name) < count(large, name)


PROGRAM = """
import time
from benchmarks.worker import Case, serve
serve(lambda: Case(lambda: time.sleep({seconds}), 10, 7))
"""


def test_two_resident_programs_run_in_turn(monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    commands = [[sys.executable, "-c", PROGRAM.format(seconds=s)] for s in (0.02, 0.04)]
    with compare.Program(commands[0], ".", 1) as a, compare.Program(commands[1], ".", 1) as b:
        assert a.facts["parameters"] == b.facts["parameters"] == 7
        rates = [(a.call(), b.call()) for _ in range(3)]
    for fast, slow in rates:
        assert fast > slow
        assert fast < 10 / 0.02
    assert a.process.returncode is not None


def test_a_program_that_dies_is_an_error_with_its_exit_code(monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    with pytest.raises(SystemExit, match="ended with 3"):
        compare.Program([sys.executable, "-c", "raise SystemExit(3)"], ".", 1)


def test_a_save_takes_longer_than_training_waits_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr(saves, "LEAVES", 4)
    found = saves.measure(400_000, 2, tmp_path)
    assert found["gib"] == pytest.approx(16 * 400_000 / 2**30, abs=0.005)
    assert 0 <= found["waits_seconds"] < found["whole_low"] <= found["whole_seconds"]


def test_documented_readings_of_the_study_are_those_of_its_csv():
    rows = read_csv(mnist_readings.TABLE)
    biased, unbiased = (
        mnist_readings.readings(mnist_readings.Half(rows, bias)) for bias in ("biased", "unbiased")
    )
    text = (runs.ROOT / "docs" / "results.md").read_text()
    for number in (*biased["cas_ratio"], *unbiased["cas_ratio"]):
        assert f"{number:.2f}" in text
    assert biased["error_of_the_aligned_share"]["fitted from generation 0 on"] == 0.098
    assert unbiased["error_of_the_aligned_share"]["fitted from generation 0 on"] is None


def test_documented_readings_of_cifar20_are_those_of_its_csv():
    rows = read_csv(cifar20_readings.TABLE)
    text = " ".join((runs.ROOT / "docs" / "results.md").read_text().split())
    for bias in ("biased", "natural"):
        found = cifar20_readings.readings(rows, bias)
        for name in ("best_recall", "worst_recall", "worst_to_best"):
            mean, low, high = found[name]["contrast"]
            assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in text


def test_shares_of_the_kinds_of_work_add_up_to_one():
    found = [
        ("ynn_fusion.3", 2.0),
        ("all-reduce", 1.0),
        ("transpose_copy_fusion", 0.5),
        ("convert_fusion", 0.5),
    ]
    assert profile.shares(iter(found), 8.0) == {
        "idle": 0.5,
        "convolutions and matrix products": 0.25,
        "exchange between devices, waiting included": 0.125,
        "transposes and copies": 0.062,
        "elementwise and sums": 0.062,
    }


def test_a_trace_yields_the_operations_that_ran(tmp_path):
    program = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y @ x, x))
    x = jax.numpy.ones((64, 64))
    program(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        program(x).block_until_ready()
    found = list(profile.operations(tmp_path))
    assert all(0 <= seconds < 10 for _, seconds in found)
    names = [name for name, _ in found]
    assert sum("ynn" in name or "dot" in name for name in names) == 3
    assert not any(name.startswith("while") for name in names)


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("performance", ("compare", "revisions", "profile")),
        ("validation", ("coverage", "placebo", "dynamics")),
    ],
)
def test_documented_tables_equal_those_made_from_the_jsonl_file(name, programs):
    lines = runs.ROOT / "docs" / f"{name}.jsonl"
    text = tables.markdown([json.loads(line) for line in lines.read_text().splitlines()])
    assert text in (runs.ROOT / "docs" / f"{name}.md").read_text()
    assert all(f"benchmarks.{program}" in text for program in programs)


def test_every_case_of_the_closed_forms_is_a_line_of_json():
    """Few trials: whether the laws hold is what the full program says."""
    lines = [json.loads(line) for line in dynamics.lines(8)]
    assert len({line["case"] for line in lines}) >= 8
    assert all(line["trials"] in (2, 8) for line in lines)


def test_documented_validation_holds():
    """What docs/validation.md says of its tables, in numbers."""
    text = (runs.ROOT / "docs" / "validation.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line.get("ok", True) for line in lines)
    for line in lines:
        assert all(share >= 0.93 for share in line.get("coverage", {}).values()), line
    assert {line["design"] for line in lines if "coverage" in line} == set(coverage.DESIGNS)
    placebos = [x for x in lines if x.get("case") in ("nothing", "copies")]
    assert len(placebos) == 6
    assert all(line["any_change"] <= 0.05 for line in placebos)


COSINE = processes.Ddpm("cosine", 1000, "v")


def ancestral_variance(variance, steps):
    """Returns the variance of the images that ancestral sampling makes of Gaussian data."""
    times = np.rint(np.linspace(1000, 0, steps + 1)).astype(int)
    a = processes.alphas_bar("cosine", 1000)[times]
    found = 1.0
    for now, then in itertools.pairwise(a):
        gain = np.sqrt(now) * variance / (now * variance + 1 - now)
        # The posterior of x_s is Gaussian: precisions of x_s given x_0 and of x_t given x_s add up.
        of_x_0, of_x_t = 1 / max(1 - then, 1e-12), 1 / (then / now - 1)
        total = of_x_0 + of_x_t
        weight = (of_x_t / np.sqrt(now / then) + of_x_0 * np.sqrt(then) * gain) / total
        found = weight**2 * found + 1 / total
    return found


def test_damaged_files_are_read_or_refused():
    """A few of those of the fuzzer, in a process without threads, which it forks."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--count=60"],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 19
    assert all(line["counts"]["refused"] > 10 for line in lines)


def test_shares_of_the_variance_equal_independent_numbers():
    parts = {str(sd): np.array([sd**2]) for sd in (0.5, 0.25, 0.1, 0.05)}
    ddim = variance.shares(COSINE, "ddim", 30, parts)["one"]
    # As another program computed them.
    np.testing.assert_allclose(list(ddim.values()), [0.90, 0.83, 0.62, 0.35], atol=0.006)
    both = {"both": np.array([0.25, 0.01])}
    found = variance.shares(COSINE, "ancestral", 20, both)
    values = np.array([0.25, 0.01])
    for which, generations in (("one", 1), ("five", 5)):
        for _ in range(generations if which == "one" else 4):
            values = np.array([ancestral_variance(v, 20) for v in values])
        assert found[which]["both"] == pytest.approx(values.sum() / 0.26, abs=1e-4)


def test_documented_shares_are_those_of_the_default_sampler():
    page = (runs.ROOT / "docs" / "dynamics.md").read_text()
    name = "digits, 8 px"
    parts = {name: variance.spectrum(variance.image_sets()[name])}
    found = variance.shares(COSINE, "multistep", 15, parts)
    assert found["one"][name] == pytest.approx(1, abs=0.01)
    table = page.partition(f"| {name} |")[2].partition("\n\n")[0].splitlines()
    (row,) = (x for x in table if x.startswith("| ddpm, cosine | multistep |"))
    # Of the header, the first column has been cut off.
    cell = row.split("|")[table[0].split("|").index(" 15 ") + 2]
    assert cell.strip() == f"{found['one'][name]:.3f} ({found['five'][name]:.3f})"


def test_the_drift_of_the_study_is_computed_for_its_table():
    case = next(drift.cases(loops=5, seeds=1))
    assert case["case"] == "biased, accumulate"
    low, high = case["band"]
    assert all(0.7 < a <= b <= c <= 1 for a, b, c in zip(low, case["copies"], high, strict=True))
    assert len(case["observed"]) == 5


def test_simulated_gaps_go_where_the_closed_form_says():
    """Where chance adds up, the simulated gap lies above the closed form, elsewhere near it."""
    curve = LearningCurve(
        ("own", "shortcut"), np.zeros(10), np.array([0.6, -2.0]), np.array([-0.4, -0.6, 1.5])
    )
    for row in gap_dynamics.cases(curve, loops=3):
        closed, seen = np.array(row["closed_form"]), np.array(row["simulated"])
        # Start, then the direction of the first step.
        assert abs(seen[0] - closed[0]) < 0.05, row
        assert np.sign(seen[1] - seen[0]) == np.sign(row["size"][0] - row["size"][1]), row
        if row["rule"].startswith(("replace", "accumulate_subsample")):
            assert (seen[1:] > closed[1:]).all(), row
            assert seen[-1] > seen[1], row
        else:
            assert np.abs(seen - closed).max() < 0.05, row
            falls = row["rule"] == "accumulate"
            # One step and rest, or on and on.
            assert (seen[-1] < seen[1] - 0.04) == falls, row


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_program_of_a_run_has_a_scatter(platform):
    config = lowering.read("cifar20.py:tiny")  # with an annotator
    config = replace(
        config,
        diffusion=replace(config.diffusion, unet=replace(config.diffusion.unet, attention=(8,))),
    )
    found = [lowering.lower(program, platform) for program in lowering.programs(config, platform)]
    assert [line["program"] for line in found] == [
        *("diffusion_train", "classifier_train", "annotator_train"),
        *("sample", "classifier_inference", "annotator_inference"),
    ]
    assert {line["scatters"] for line in found} == {0}
    assert all(line["flops"] > 0 and line["argument_bytes"] > 0 for line in found)
    assert [line.get("activation_bytes", 0) > 0 for line in found] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        *(("resnet", "small"), ("resnet", "imagenet"), ("resnet50", "imagenet")),
        *(("vgg11", "small"), ("vgg11", "imagenet"), ("lenet", "small")),
    ],
)
def test_the_training_step_of_no_classifier_has_a_scatter(network, layout):
    section = replace(
        configs.Config().classifier, network=network, layout=layout, width=4, stages=(1, 1)
    )
    trainer = classifier.make_trainer(classifier.build(section, 3), section, 16, 1)
    pool = {"pixels": np.zeros((8, 16, 16, 3), np.uint8), "label": np.zeros(8, np.int32)}
    pool["group"] = pool["label"]
    rows = {"index": np.zeros((jax.device_count(), 1, 2), np.int32)}
    arguments = (trainer.abstract, pool, rows, jax.random.key(0))
    assert (
        lowering.lower(lowering.Program("", trainer.program, arguments, 2), "cuda")["scatters"] == 0
    )


def test_scatters_are_found():
    index = np.array([0, 1, 1])

    def picked(table):
        return table[index].sum()

    def pooled(x):
        return nn.max_pool(x, (2, 2), (2, 2)).sum()

    for function, shape in ((picked, (2, 3)), (pooled, (1, 4, 4, 1))):
        program = lowering.Program("", jax.grad(function), (np.zeros(shape, np.float32),), 1)
        assert lowering.lower(program, "cuda")["scatters"] == 1


def test_every_shipped_config_is_lowered():
    files = {path.name for path in lowering.FOLDER.glob("*.py")} - {"common.py"}
    assert {name.partition(":")[0] for name in lowering.SHIPPED} == files
