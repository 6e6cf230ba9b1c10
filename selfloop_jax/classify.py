"""The classifier: its loss, its trainer, and its predictions over a set."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from selfloop_jax import parallel, train
from selfloop_jax.models.lenet import LeNet
from selfloop_jax.models.resnet import ResNet


def build(section: Any, num_classes: int) -> nn.Module:
    """The network that section `classifier` asks for."""
    if section.network == "lenet":
        return LeNet(num_classes=num_classes)
    return ResNet(
        num_classes=num_classes, stages=tuple(section.stages), width=section.width, axis_name=parallel.AXIS
    )


def to_input(pixels: jax.Array) -> jax.Array:
    """uint8[...] -> float32[...] in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def loss(params, batch_stats, batch, key, *, model: nn.Module, smoothing: float):
    """Cross-entropy with label smoothing, mean over this device's examples; aux: statistics, accuracy."""
    del key
    logits, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        to_input(batch["pixels"]),
        train=True,
        mutable=["batch_stats"],
    )
    target = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), smoothing)
    value = optax.softmax_cross_entropy(logits, target).mean()
    accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
    return value, (updated.get("batch_stats", batch_stats), {"accuracy": accuracy})


def make_trainer(model: nn.Module, section: Any, side: int, steps_per_dispatch: int) -> train.Trainer:
    """The classifier's trainer for images of `side` pixels."""
    init = partial(_init, model=model, side=side)
    bound = partial(loss, model=model, smoothing=section.label_smoothing)
    return train.make_trainer(init, bound, section, steps_per_dispatch)


def _init(key: jax.Array, *, model: nn.Module, side: int) -> Any:
    return model.init(key, jnp.zeros((1, side, side, 3)))


def make_predict(model: nn.Module, batch: int) -> Callable[[train.TrainState, np.ndarray], np.ndarray]:
    """`predict(state, pixels uint8[N,H,W,3]) -> logits float32[N,C]`, in padded batches of `batch`."""

    def one_device(weights, pixels):
        return model.apply(weights, to_input(pixels))

    program = parallel.spread(one_device)

    def predict(state: train.TrainState, pixels: np.ndarray) -> np.ndarray:
        weights = {"params": state.ema_params, "batch_stats": state.batch_stats}
        padding = np.zeros((-len(pixels) % batch, *pixels.shape[1:]), np.uint8)
        padded = np.concatenate([pixels, padding])
        parts = [program(weights, padded[i : i + batch]) for i in range(0, len(padded), batch)]
        return np.concatenate(parts)[: len(pixels)]

    return predict
