"""Sampling from a trained generator: start noise keyed by image id, then a solver."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax.config import SampleConfig
from selfloop_jax.diffusion import processes, solvers
from selfloop_jax.models.unet import UNet
from selfloop_jax.runtime import parallel


def make_sampler(
    model: UNet, process: processes.Process, section: SampleConfig, side: int
) -> Callable:
    """`draw(params, key, ids uint32[N], label int32[N], group int32[N]) -> pixels uint8[N,side,side,3]`.

    Each image's noise is keyed by its id, so an image does not depend on what is drawn beside it.
    Section `sample`: sampler, steps, guidance w (0: the conditional model alone), temperature,
    clip.
    """

    def network(params, label, group):
        if not section.guidance:
            return lambda x, level: model.apply({"params": params}, x, level, label, group)
        both_label = jnp.concatenate([label, jnp.full_like(label, model.num_classes)])
        both_group = jnp.concatenate([group, jnp.full_like(group, model.num_groups)])

        def pair(x, level):
            twice = jnp.concatenate([x, x]), jnp.concatenate([level, level])
            return jnp.split(model.apply({"params": params}, *twice, both_label, both_group), 2)

        return solvers.guided(pair, section.guidance)

    def one_device(shared, rows):
        params, key = shared
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows["id"])

        def noise(step):
            return jax.vmap(
                lambda k: jax.random.normal(jax.random.fold_in(k, step), (side, side, 3))
            )(keys)

        group = jnp.where(
            rows["group"] < 0, model.num_groups, rows["group"]
        )  # unknown: the null group
        net = network(params, rows["label"], group)

        def denoise(x, time):
            x_0 = process.denoise(net, x, time)
            return jnp.clip(x_0, -1, 1) if section.clip else x_0

        start = noise(np.uint32(2**31)) * (process.prior_scale * section.temperature)
        x = solvers.SOLVERS[section.sampler](process, denoise, start, section.steps, noise)
        return jnp.rint((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    program = parallel.map_over_devices(one_device)

    def draw(params, key, ids, label, group):
        return program((params, key), {"id": ids, "label": label, "group": group})

    return draw
