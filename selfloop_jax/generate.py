"""The generator: a U-Net trained as a denoiser, and what is drawn from it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax import diffusion, parallel, rng, train
from selfloop_jax.augment import augment
from selfloop_jax.classify import to_input
from selfloop_jax.data.images import UNKNOWN, Images
from selfloop_jax.models.unet import UNet


def build(
    section: Any, num_classes: int, num_groups: int, dtype: str | None = None
) -> tuple[UNet, diffusion.Process]:
    """Network and process that section `diffusion` asks for; `dtype` of activations, None: the input's."""
    groups = num_groups if section.condition_on == "label_group" else 0
    net = {**section.unet, "multipliers": tuple(section.unet.multipliers)}
    net["attention"] = tuple(section.unet.attention)
    kind = diffusion.Ddpm if section.process == "ddpm" else diffusion.Edm
    return UNet(num_classes=num_classes, num_groups=groups, dtype=dtype, **net), kind(
        **section[section.process]
    )


def loss(params, batch_stats, batch, key, *, model: UNet, process: diffusion.Process, section: Any):
    """Denoising loss, mean over this device's examples; noise is keyed by place in the global batch.

    Section `diffusion`: label_dropout and augment.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
    example_keys, drop_keys, net_keys = jax.vmap(partial(jax.random.split, num=3), out_axes=1)(keys)
    augment_key = jax.random.fold_in(key, np.uint32(2**31))  # no place in a batch
    x_0 = augment(to_input(batch["pixels"]), augment_key, batch["position"], section.augment)
    x, level, target = jax.vmap(process.example)(example_keys, x_0)
    dropped = jax.vmap(partial(jax.random.bernoulli, p=section.label_dropout))(drop_keys)
    label = jnp.where(dropped, model.num_classes, batch["label"])
    group = jnp.where(dropped | (batch["group"] < 0), model.num_groups, batch["group"])
    output = model.apply({"params": params}, x, level, label, group, net_keys)
    return jnp.mean((output - target) ** 2), (batch_stats, {})


def make_trainer(
    model: UNet, process: diffusion.Process, section: Any, side: int, steps_per_dispatch: int
) -> train.Trainer:
    """The generator's trainer for images of `side` pixels."""
    bound = partial(loss, model=model, process=process, section=section)
    return train.make_trainer(partial(_init, model=model, side=side), bound, section, steps_per_dispatch)


def _init(key: jax.Array, *, model: UNet, side: int) -> Any:
    one = jnp.zeros(1, jnp.int32)
    return model.init(key, jnp.zeros((1, side, side, 3)), jnp.zeros(1), one, one)


def make_draw(model: UNet, process: diffusion.Process, section: Any, side: int) -> Callable:
    """`draw(params, key, ids uint32[N], label int32[N], group int32[N]) -> pixels uint8[N,side,side,3]`.

    Each image's noise is keyed by its id, so an image does not depend on what is drawn beside it. Section
    `sample`: sampler, steps, guidance w (0: the conditional model alone), temperature, clip.
    """

    def network(params, label, group):
        if not section.guidance:
            return lambda x, level: model.apply({"params": params}, x, level, label, group)
        both_label = jnp.concatenate([label, jnp.full_like(label, model.num_classes)])
        both_group = jnp.concatenate([group, jnp.full_like(group, model.num_groups)])

        def pair(x, level):
            twice = jnp.concatenate([x, x]), jnp.concatenate([level, level])
            return jnp.split(model.apply({"params": params}, *twice, both_label, both_group), 2)

        return diffusion.guided(pair, section.guidance)

    def one_device(shared, rows):
        params, key = shared
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows["id"])

        def noise(step):
            return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, step), (side, side, 3)))(keys)

        group = jnp.where(rows["group"] < 0, model.num_groups, rows["group"])  # unknown: the null group
        net = network(params, rows["label"], group)

        def denoise(x, time):
            x_0 = process.denoise(net, x, time)
            return jnp.clip(x_0, -1, 1) if section.clip else x_0

        start = noise(np.uint32(2**31)) * (process.prior_scale * section.temperature)
        x = diffusion.SAMPLERS[section.sampler](process, denoise, start, section.steps, noise)
        return jnp.rint((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    program = parallel.spread(one_device)

    def draw(params, key, ids, label, group):
        return program((params, key), {"id": ids, "label": label, "group": group})

    return draw


def conditions(
    section: Any, address: rng.Address, pool: Images, real: Images, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int32[count] label and group asked of each id: a function of the id alone.

    `uniform` deals out the cells (label, group) in turn; `pool` and `real` deal out the conditions of that
    set in a keyed order without replacement, starting over when it is used up. So shares are those named,
    without sampling noise. The group counts only where the generator is conditioned on it. `members`
    bool[C,G]: the groups a class has.
    """
    ids = np.arange(section.count)
    if section.condition == "uniform":
        label, turn = ids % len(members), ids // len(members)
        owned = np.argsort(~members, axis=1, kind="stable")  # a class's groups first
        count = members.sum(axis=1)[label]
        group = np.where(count > 0, owned[label, turn % np.maximum(count, 1)], UNKNOWN)
        return label.astype(np.int32), group.astype(np.int32)
    reference = {"pool": pool, "real": real}[section.condition]
    order = rng.permutation((*address, "condition"), len(reference))[ids % len(reference)]
    return reference.label[order], reference.group[order]
