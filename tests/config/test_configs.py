"""Tests the shipped configs: arguments, dry runs without data, `tiny`, missing folders."""

import itertools
import re
import runpy
from pathlib import Path

import pytest
from runs import ROOT, call, main

from selfloop_jax import config as configs
from selfloop_jax.config import parse_arg
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import other_run, setup
from selfloop_jax.loop.branch import NOT_READ_BY_GENERATION_0
from selfloop_jax.runtime.store import write_json

CONFIGS = sorted({path.name for path in (ROOT / "configs").glob("*.py")} - {"common.py"})


STUDIES = {  # arguments, and the number of parameters of the generator
    "quickstart.py": ("", 173_875),
    "colormnist.py": (":mnist5k,unbiased", 389_000),
    "digits_study.py": (":replace,unbiased", 173_875),
    "mnist_study.py": (":replace,unbiased", 173_875),
    "cifar20.py": (":unbiased", 35_750_000),
    "hardimagenet.py": (":128,unbiased", 94_140_000),
    "folder.py": (":biased", None),
}


UNKNOWN = {"hardimagenet.py": "data.hardimagenet.images_dir", "folder.py": "data.folder.dir"}


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Makes an empty home: no data sets and no caches."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_every_shipped_config_has_a_case():
    assert set(CONFIGS) == set(STUDIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dry_run_needs_no_data(name, bare, tmp_path):
    argument, parameters = STUDIES[name]
    shown = call(f"--config=configs/{name}{argument}", "--dry_run")
    assert shown.returncode == 0, shown.stderr
    assert "training images, diffusion:" in shown.stdout
    unknown = re.findall(r"size unknown: set (data[\w.]+)", shown.stdout)
    assert set(unknown) == ({UNKNOWN[name]} if name in UNKNOWN else set())
    if parameters:
        found = int(re.search(r"parameters, diffusion: ([\d,]+)", shown.stdout)[1].replace(",", ""))
        assert found == pytest.approx(parameters, rel=0.01)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [
        path for path in left if not path.startswith((".cache/selfloop_jax/", ".cache/matplotlib"))
    ]


@pytest.mark.parametrize("name", ["hardimagenet.py", "folder.py"])
def test_a_run_without_its_images_says_where_to_put_them(name, bare, tmp_path):
    workdir = tmp_path / "run"
    ended = call(f"--config=configs/{name}", f"--workdir={workdir}")
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {UNKNOWN[name]} = '': must be the folder ")
    assert len(ended.stderr.splitlines()) == 1
    assert not workdir.exists()


def test_an_argument_names_one_of_each_option_in_any_order():
    options = ("mnist5k", "full"), ("biased", "unbiased")
    assert parse_arg("", *options) == ["mnist5k", "biased"]
    assert parse_arg("unbiased", *options) == ["mnist5k", "unbiased"]
    assert parse_arg("unbiased,full", *options) == ["full", "unbiased"]
    for wrong in ("mnist6k", "biased,unbiased", "full,full", "full,tiny"):
        with pytest.raises(
            UsageError,
            match=r": what follows the colon must be mnist5k \| full, biased \| unbiased$",
        ):
            parse_arg(wrong, *options)


def test_an_option_may_be_empty():
    options = ("mnist5k", "full"), ("", "tiny")
    assert parse_arg("full", *options) == ["full", ""]
    assert parse_arg("tiny", *options) == ["mnist5k", "tiny"]
    with pytest.raises(UsageError, match=r": what follows the colon must be tiny$"):
        parse_arg("small", ("", "tiny"))


def every_argument(name):
    """Returns all arguments of a config file but `tiny`, as listed in its error message."""
    with pytest.raises(UsageError) as caught:
        get_config(name, "nonsense")
    lists = str(caught.value).partition(": what follows the colon must be ")[2].split(", ")
    options = [one.split(" | ") for one in lists]
    assert options.pop() == ["tiny"]
    return [",".join(words) for words in itertools.product(*options)]


def get_config(name, arg):
    configs.share_folder(ROOT / "configs" / name)
    return runpy.run_path(str(ROOT / "configs" / name))["get_config"](arg)


LISTS = {
    "digits_study.py": ("sweep", "response", "samplers"),
    "mnist_study.py": ("curve", "sweep", "ablation"),
    "cifar20.py": ("sweep",),
}


@pytest.mark.parametrize("name", LISTS)
def test_listed_runs_can_start_from_the_generation_0_that_they_name(name, tmp_path):
    module = runpy.run_path(str(ROOT / "configs" / name))
    made = set()
    for stage in itertools.chain(*(module[one](str(tmp_path)) for one in LISTS[name])):
        for run, argument, overrides in stage:
            config = get_config(name, argument)
            config.update_from_flattened_dict(overrides)
            typed = configs.typed(config)
            if typed.loop.branch_from:
                assert typed.loop.branch_from in made
                other_run.check(
                    typed,
                    Path(typed.loop.branch_from),
                    "loop.branch_from",
                    NOT_READ_BY_GENERATION_0,
                )
            write_json(tmp_path / run / "config.json", typed.to_dict())
        made |= {str(tmp_path / run) for run, _, _ in stage}


@pytest.mark.parametrize("name", CONFIGS)
def test_tiny_shrinks_the_work_and_keeps_the_data(name):
    for arg in every_argument(name):
        whole, tiny = (configs.typed(get_config(name, f"{arg}{word}")) for word in ("", ",tiny"))
        for config in (whole, tiny):
            configs.check(config)
            setup.check(config)
            setup.check_given(config, ())
        assert (whole.data, whole.pool, whole.diffusion.process) == (
            tiny.data,
            tiny.pool,
            tiny.diffusion.process,
        )
        assert tiny.loop.generations == 2
        assert tiny.diffusion.steps < whole.diffusion.steps / 10
        assert tiny.sample.count < whole.sample.count


def test_a_tiny_run_ends_with_a_report(tmp_path):
    # With fewer steps than it has, and networks of other tests, whose programs are kept.
    networks = ("unet.multipliers=(1,)", "steps=20", "later.steps=8")
    fewer = [f"--config.diffusion.{field}" for field in networks]
    fewer += ["--config.classifier.stages=(1,)", "--config.parallel.cpu_devices=4"]
    workdir = tmp_path / "run"
    done = main("--config=configs/quickstart.py:tiny", *fewer, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert (workdir / "report.html").is_file()


def test_an_unknown_argument_is_a_usage_error():
    ended = call("--config=configs/colormnist.py:mnist6k", "--dry_run")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --config=FILE:mnist6k: what follows the colon must be")


def test_the_two_arms_of_cifar20_differ_only_in_the_bias():
    arms = []
    for bias in ("biased", "unbiased"):
        shown = call(f"--config=configs/cifar20.py:{bias}", "--dry_run", "--workdir=x").stdout
        arms.append({line for line in shown.splitlines() if "data.bias.kind" not in line})
    assert arms[0] == arms[1]


def test_the_readme_names_every_config():
    readme = (Path(ROOT) / "README.md").read_text()
    assert [name for name in CONFIGS if f"configs/{name}" not in readme] == []
