"""What the generations of a run share: sizes that all of them keep to."""

import shutil
from pathlib import Path

import runs

from selfloop_jax.config import Config, LoopConfig, PoolConfig, SampleConfig
from selfloop_jax.data.pool_rules import Accumulate
from selfloop_jax.loop import context


def test_training_sets_are_padded_to_the_largest_of_a_run():
    config = Config(
        pool=PoolConfig("accumulate"),
        sample=SampleConfig(count=50),
        loop=LoopConfig(generations=3, group_source="annotator"),
    )
    assert context.capacity(config, groups=2, train=100, before_subsampling=120) == 200
    assert context.capacity(config, groups=2, train=100, before_subsampling=900) == 900
    assert context.capacity(config, groups=1, train=100, before_subsampling=900) == 200


def test_a_pool_beyond_the_capacity_of_its_rule_is_one_line(finished, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(workdir / "gen_0002")
    monkeypatch.setattr(Accumulate, "capacity", lambda self, section, g, real, count: real)
    done = runs.call_run(workdir)
    assert done.returncode == 2
    assert done.stderr == (
        "error: pool.rule = accumulate: must make pools of at most their capacity, 900 images in "
        "generation 2, not 1300\n"
    )
