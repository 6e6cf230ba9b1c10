"""Mistakes of a user: one line that names field, value and rule, and exit code 2."""

import pytest
import runs

C = runs.CONFIG


WRONG = {
    "unknown key": (
        [C, "--config.diffusion.step=3"],
        "diffusion.step: unknown field; did you mean steps?",
    ),
    "section for a field": (
        [C, "--config.data.bias=rho"],
        "data.bias = rho: is a section; its fields are kind, rho, per_class",
    ),
    "mistyped value": ([C, "--config.diffusion.steps=many"], "diffusion.steps=many: "),
    "override before config": (["--config.seed=1", C], "--config.seed=1"),
    "no config": ([], "--config"),
    "config file missing": (["--config=configs/nothing.py"], "configs/nothing.py"),
    "unknown flag": ([C, "--wrokdir=/tmp/x"], "wrokdir"),
    "unknown choice": ([C, "--config.pool.rule=mix"], "pool.rule = mix: must be one of replace | "),
    "out of range": ([C, "--config.data.bias.rho=1.5"], "data.bias.rho = 1.5: must be from 0 to 1"),
    "not positive": ([C, "--config.diffusion.steps=0"], "diffusion.steps = 0: must be > 0"),
    "budget over pool": (
        [C, "--config.pool.rule=accumulate_subsample", "--config.pool.budget=1000"],
        "pool.budget = 1000: must be from 1 to 900, the number of real images",
    ),
    "reserve outrun": (
        [C, "--config.pool.rule=fresh", "--config.pool.n_real=200"],
        "pool.n_real = 200: 3 generations need 600 images, but the reserve has 360",
    ),
    "attention at a side the net does not have": (
        [C, "--config.diffusion.unet.attention=(16,)"],
        "diffusion.unet.attention = (16,): must be among (8, 4)",
    ),
    "too many levels": (
        [C, "--config.diffusion.unet.multipliers=(1,1,1,1,1)"],
        "diffusion.unet.multipliers = (1, 1, 1, 1, 1): must be few enough that",
    ),
    "sampler of the other process": (
        [C, "--config.sample.sampler=heun"],
        "sample.sampler = heun: must be one of ddim",
    ),
    "a temperature that does nothing": (
        [C, "--config.sample.sampler=ancestral", "--config.sample.temperature=0.5"],
        "sample.temperature = 0.5: must be 1 where sample.sampler = ancestral",
    ),
    "batch not divisible": (
        [C, "--config.diffusion.batch=33"],
        "diffusion.batch = 33: must be a multiple of the 4",
    ),
    "image size the source does not have": (
        [C, "--config.data.image_size=16"],
        "data.image_size = 16",
    ),
    "no stages": (
        [C, "--config.classifier.stages=()"],
        "classifier.stages = (): must be one value or more",
    ),
    "a stage of no blocks": ([C, "--config.annotator.stages=(1,-1)"], "annotator.stages = (1, -1)"),
    "no multiplier": (
        [C, "--config.diffusion.unet.multipliers=(0,1)"],
        "diffusion.unet.multipliers = (0, 1)",
    ),
    "no network": (
        [C, "--config.classifier.network=alexnet", "--workdir=/nonexistent/run"],
        "classifier.network = alexnet: must be one of resnet | ",
    ),
    "a field without a name": ([C, "--config.=3"], "--config.: must be --config.FIELD=VALUE"),
    "an empty section": ([C, "--config..seed=3"], "--config..seed: must be --config.FIELD=VALUE"),
    "a name within a field": ([C, "--config.data.source.x=3"], "data.source.x: must end at data.s"),
    "a part of Python": ([C, "--config.data.__dict__=1"], "data.__dict__: unknown field"),
    "a bucket for the run": (
        [C, "--workdir=gs://bucket/run"],
        "--workdir=gs://bucket/run: must be a path of this machine: a bucket has no locks",
    ),
    "a bucket for the caches": (
        [C, "--config.data.cache_dir=gs://bucket/run"],
        "data.cache_dir = gs://bucket/run: must be a path of this machine: a bucket has no locks",
    ),
    "no process": (
        [C, "--config.diffusion.process=edm2"],
        "diffusion.process = edm2: must be one of ddpm | edm",
    ),
    "no source": (
        [C, "--config.data.source=cifar"],
        "data.source = cifar: must be one of digits | mnist5k",
    ),
    "no name": ([C, "--config.data.source=tfds:"], "data.source = tfds:"),
    "gray digits without colours": (
        [C, "--config.data.colorize=none"],
        "data.colorize = none: must be one of foreground | ",
    ),
    "colours on colours": (
        ["--config=configs/cifar20.py", "--config.data.colorize=foreground"],
        "data.colorize = foreground: must be none for data.source = cifar20",
    ),
    "oracle without colours": (
        ["--config=configs/cifar20.py", "--config.loop.group_source=oracle"],
        "loop.group_source = oracle: must be annotator | requested",
    ),
    "more than there are": (
        ["--config=configs/cifar20.py", "--config.data.train_size=60000"],
        "data.train_size = 60000: must be at most 35000",
    ),
    "hue jitter on coloured digits": (
        [C, "--config.classifier.augment.hue=0.1"],
        "classifier.augment.hue = 0.1: must be 0 where an image's colour is its group",
    ),
    "weights that are not there": (
        [C, "--config.classifier.init_from=/nope.pth"],
        "classifier.init_from = /nope.pth: no such file",
    ),
    "freeze without weights": ([C, "--config.classifier.freeze=True"], "classifier.freeze = True"),
    "a class without images": (
        ["--config=configs/colormnist.py", "--config.data.train_size=5"],
        "data.train_size = 5: too small to leave an image of class",
    ),
    "an argument of the quickstart": (
        [C + ":biased"],
        "--config=FILE:biased: what follows the colon must be tiny",
    ),
    "a folder for another source": (
        [C, "--config.data.folder.dir=mine", "--workdir=/nonexistent/run"],
        "data.folder.dir = mine: must be '' where data.source = digits",
    ),
    "a share for splits that are fixed": (
        [C, "--config.data.validation_share=0.3", "--workdir=/nonexistent/run"],
        "data.validation_share = 0.3: must be 0.1 where data.source = digits",
    ),
    "archives for another source": (
        ["--config=configs/folder.py", "--config.data.archive_dir=a", "--workdir=/nonexistent/run"],
        "data.archive_dir = a: must be '' where data.source = folder",
    ),
    "a field that the network does not read": (
        [
            *(C, "--config.classifier.network=resnet18", "--config.classifier.stages=(1,)"),
            "--workdir=/nonexistent/run",
        ],
        "classifier.stages = (1,): must be left out where classifier.network = resnet18",
    ),
    "dry run of a replay": (
        [C, "--dry_run", "--replay=0"],
        "--replay: must be left out with --dry_run",
    ),
    "changes accepted in a dry run": (
        [C, "--dry_run", "--accept_manifest"],
        "--accept_manifest: must be left out with --dry_run",
    ),
    "changes accepted in a replay": (
        [C, "--replay=7", "--accept_manifest"],
        "--accept_manifest: must be left out with --replay",
    ),
    "replay of nothing": ([C, "--replay=1", "--workdir=/nonexistent/run"], "--replay=1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistake_is_one_line_and_exit_code_2(name):
    arguments, named = WRONG[name]
    done = runs.call(*arguments, *([] if "replay" in name else ["--dry_run"]))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert done.stdout == ""


def test_a_network_may_be_chosen_over_that_of_the_config_file():
    # The file sets `stages` for its own network.
    done = runs.call(
        C, "--config.classifier.network=lenet", "--workdir=/nonexistent/run", "--dry_run"
    )
    assert done.returncode == 0, done.stderr


def test_process_of_a_mistake_prints_one_line_and_exits_with_2():
    done = runs.main(*WRONG["unknown key"][0])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: diffusion.step: unknown field; did you mean steps?\n"


def test_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        done = runs.call(C, f"--workdir={workdir}")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --workdir={workdir}: cannot be made: ")
        assert len(done.stderr.splitlines()) == 1


def test_dry_run_says_what_a_run_will_be_and_writes_nothing(tmp_path):
    done = runs.call(C, "--dry_run", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "pool sizes, generation 0 on: 900, 1800, 2700, 3600" in done.stdout
    assert "parameters, diffusion: " in done.stdout
    assert not list(tmp_path.iterdir())
