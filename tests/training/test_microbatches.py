"""Tests gradients of microbatches against those of the whole batch."""

import dataclasses

import jax
import numpy as np

from selfloop_jax.config import DiffusionConfig, FlipConfig, UNetConfig
from selfloop_jax.runtime import parallel
from selfloop_jax.training import generator

BATCH = 32
# Dropout and flips as well, whose randomness must not depend on the parts.
UNET = UNetConfig(channels=8, multipliers=(1,), dropout=0.1)
SECTION = DiffusionConfig(
    process="ddpm", batch=BATCH, unet=UNET, augment=FlipConfig(flip=True), warmup_steps=1
)


def trained(microbatches: int) -> tuple[list[np.ndarray], list[float]]:
    """Returns weights and losses of three steps."""
    section = dataclasses.replace(SECTION, microbatches=microbatches)
    net, process = generator.build(section, 3, 0)
    trainer = generator.make_trainer(net, process, section, 8, 1)
    random = np.random.default_rng(0)
    pool = {"pixels": random.integers(0, 256, (40, 8, 8, 3), np.uint8)}
    pool |= {name: np.arange(40, dtype=np.int32) % 3 for name in ("label", "group")}
    pool = parallel.replicate(pool)
    key = parallel.replicate(jax.random.key(1))
    state = trainer.start(trainer.init(jax.random.key(0)), 1e-3, 100.0)
    losses = []
    for _ in range(3):
        index = random.integers(0, 40, (1, BATCH)).astype(np.int32)
        rows = parallel.shard_steps({"index": index})
        state, metrics = trainer.program(state, pool, rows, key)
        losses.append(float(metrics["loss"][0]))
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.params)], losses


def test_microbatches_make_the_step_of_the_whole_batch():
    weights, losses = trained(4)
    expected, expected_losses = trained(1)
    for found, whole in zip(weights, expected, strict=True):
        assert np.linalg.norm(found - whole) <= 1e-5 * np.linalg.norm(whole)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


def test_of_all_activations_those_of_one_microbatch_are_in_memory():
    """The compiler's count: a quarter of the batch at a time needs less than half."""
    needed = []
    for microbatches in (1, 4):
        section = dataclasses.replace(SECTION, batch=512, microbatches=microbatches)
        net, process = generator.build(section, 3, 0)
        trainer = generator.make_trainer(net, process, section, 8, 1)
        pool = {"pixels": np.zeros((8, 8, 8, 3), np.uint8)}
        pool |= {name: np.zeros(8, np.int32) for name in ("label", "group")}
        rows = {"index": np.zeros((jax.device_count(), 1, 512 // jax.device_count()), np.int32)}
        program = jax.jit(trainer.program).lower(trainer.abstract, pool, rows, jax.random.key(0))
        needed.append(program.compile().memory_analysis().temp_size_in_bytes)
    assert needed[1] < needed[0] / 2
