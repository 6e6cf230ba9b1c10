"""The generator: a U-Net trained as a denoiser."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax.config import DiffusionConfig
from selfloop_jax.diffusion import processes
from selfloop_jax.models.unet import UNet
from selfloop_jax.training import step
from selfloop_jax.training.augment import augment
from selfloop_jax.training.pixels import to_unit_range


def build(
    section: DiffusionConfig, num_classes: int, num_groups: int, dtype: str | None = None
) -> tuple[UNet, processes.Process]:
    """Network and process of section `diffusion`; `dtype` of activations, None: the input's."""
    # With 0 groups the U-Net has no embedding of groups.
    groups = num_groups if section.condition_on == "label_group" else 0
    model = UNet(
        num_classes=num_classes, num_groups=groups, dtype=dtype, **dataclasses.asdict(section.unet)
    )
    return model, processes.build(section)


def loss(
    params,
    batch_stats,
    batch,
    key,
    *,
    model: UNet,
    process: processes.Process,
    section: DiffusionConfig,
):
    """Denoising loss, mean over this device's examples.

    All noise is keyed by an example's place in the global batch, so that it does not depend on the
    number of devices. The section gives label_dropout and augment.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
    example_keys, drop_keys, net_keys = jax.vmap(partial(jax.random.split, num=3), out_axes=1)(keys)
    augment_key = jax.random.fold_in(key, np.uint32(2**31))  # beyond any place in a batch
    x_0 = augment(to_unit_range(batch["pixels"]), augment_key, batch["position"], section.augment)
    x, level, target = jax.vmap(process.training_target)(example_keys, x_0)
    # Dropped labels train the unconditional output of guidance (Ho and Salimans 2022).
    dropped = jax.vmap(partial(jax.random.bernoulli, p=section.label_dropout))(drop_keys)
    # Both are dropped together: guidance subtracts one unconditional output.
    label = jnp.where(dropped, model.num_classes, batch["label"])
    group = jnp.where(dropped | (batch["group"] < 0), model.num_groups, batch["group"])
    output: Any = model.apply({"params": params}, x, level, label, group, net_keys)
    return jnp.mean((output - target) ** 2), (batch_stats, {})


def make_trainer(
    model: UNet,
    process: processes.Process,
    section: DiffusionConfig,
    side: int,
    steps_per_dispatch: int,
) -> step.Trainer:
    """The generator's trainer for images of `side` pixels."""
    bound = partial(loss, model=model, process=process, section=section)
    return step.make_trainer(
        partial(_init, model=model, side=side),
        bound,
        section,
        steps_per_dispatch,
        microbatches=section.microbatches,
    )


def _init(key: jax.Array, *, model: UNet, side: int) -> Any:
    one = jnp.zeros(1, jnp.int32)
    return model.init(key, jnp.zeros((1, side, side, 3)), jnp.zeros(1), one, one)
