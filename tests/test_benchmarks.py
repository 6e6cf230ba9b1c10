"""The benchmarks measure what they say: sizes of presets, the work of a case, two programs in turn."""

import json
import sys

import pytest
import runs

from benchmarks import compare, ours, presets, speed


@pytest.mark.parametrize(
    ("name", "unet", "resnet"),
    [("quick", 173_875, 78_042), ("small", 1_124_899, 701_466), ("cifar", 35_746_947, 11_173_962)],
)
def test_presets_have_the_sizes_they_are_known_by(name, unet, resnet):
    config = presets.preset(name)
    net, process = ours.generate.build(config.diffusion, presets.CLASSES, 0)
    side = config.data.image_size
    assert ours.generate.make_trainer(net, process, config.diffusion, side, 1).parameters == unet
    net = ours.classify.build(config.classifier, presets.CLASSES)
    assert ours.classify.make_trainer(net, config.classifier, side, 1).parameters == resnet


def test_a_peer_is_told_all_it_needs_in_plain_json():
    told = json.loads(json.dumps(presets.for_peers(presets.preset("cifar", "bfloat16"))))
    assert told["unet"]["multipliers"] == [1, 2, 2, 2]
    assert (told["precision"], told["sample_batch"]) == ("bfloat16", 128)


@pytest.mark.parametrize("case", ["classifier_train", "classifier_inference"])
def test_a_case_does_its_work_again_and_again(case):
    config = presets.preset("quick", devices=4)
    config.classifier.stages, config.classifier.width = (1,), 4
    config.classifier.batch, config.measure.batch = 32, 32
    built = ours.build(config, case, steps=2)
    assert built.images == (64 if case.endswith("train") else 32)
    for _ in range(2):
        built.call()


def test_flops_grow_with_the_net():
    small, large = (presets.preset(name) for name in ("quick", "small"))
    for name in ("classifier_inference", "classifier_train"):
        count = speed.forward_flops if name.endswith("inference") else speed.training_flops
        assert 1e6 < count(small, name) < count(large, name)


PROGRAM = """
import time
from benchmarks.serve import Case, serve
serve(lambda: Case(lambda: time.sleep({seconds}), 10, 7))
"""


def test_two_resident_programs_answer_in_turn(monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    commands = [[sys.executable, "-c", PROGRAM.format(seconds=s)] for s in (0.02, 0.04)]
    with compare.Program(commands[0], ".", 1) as a, compare.Program(commands[1], ".", 1) as b:
        assert a.facts["parameters"] == b.facts["parameters"] == 7
        rates = [(a.call(), b.call()) for _ in range(3)]
    for fast, slow in rates:
        assert fast > slow
        assert fast < 10 / 0.02
    assert a.process.returncode is not None


def test_a_program_that_dies_is_named(monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    with pytest.raises(SystemExit, match="ended with 3"):
        compare.Program([sys.executable, "-c", "raise SystemExit(3)"], ".", 1)
