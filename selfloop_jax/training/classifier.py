"""The classifier: its loss, its trainer, and its predictions over a set."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from selfloop_jax.config import ClassifierConfig, Config, check_choice, classifiers, refuse
from selfloop_jax.errors import UsageError
from selfloop_jax.models import torch_file, torch_weights
from selfloop_jax.models.lenet import LeNet
from selfloop_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from selfloop_jax.models.vgg import VGG
from selfloop_jax.runtime import log, parallel
from selfloop_jax.training import step
from selfloop_jax.training.augment import augment
from selfloop_jax.training.pixels import normalize, to_unit_range

Options = dict[str, Any]  # width, layout, axis_name and dtype of a network


@dataclass(frozen=True)
class Network:
    """A classifier network by name.

    build(num_classes, section, options) gives the module: pixels float[N,H,W,3], as `normalize`
    leaves them, to logits float[N,num_classes], or with features=True what its last layer reads;
    the last layer is the last `nn.Dense`. reads: the fields of SHAPE that it reads. keyed_dropout:
    it takes `keys`, one per example, which switch its dropout on. torch_layout: how torchvision
    lays out its weights, so that `init_from` can name a file of them; None: it has no such network.
    """

    build: Callable[[int, ClassifierConfig, Options], nn.Module]
    reads: tuple[str, ...] = ()
    keyed_dropout: bool = False
    torch_layout: torch_weights.TorchLayout | None = None


# Fields of a classifier's section that some networks read and others do not.
SHAPE = ("stages", "width", "layout")


def _resnet(stages: tuple[int, ...], block: type[nn.Module]) -> Network:
    return Network(
        lambda classes, _, options: ResNet(classes, stages, block=block, **options),
        reads=("width", "layout"),
        torch_layout=torch_weights.RESNET,
    )


def _vgg(stages: tuple[int, ...]) -> Network:
    return Network(
        lambda classes, _, options: VGG(classes, stages, **options),
        reads=("width", "layout"),
        keyed_dropout=True,
        torch_layout=torch_weights.VGG_BN,
    )


# Blocks or convolutions per stage: He et al. 2016, table 1; Simonyan and Zisserman 2015, table 1, A
# and D. To add a network is to add a row.
NETWORKS = {
    "resnet": Network(
        lambda classes, section, options: ResNet(
            classes, section.stages, block=BasicBlock, **options
        ),
        reads=SHAPE,
        torch_layout=torch_weights.RESNET,
    ),
    "resnet18": _resnet((2, 2, 2, 2), BasicBlock),
    "resnet50": _resnet((3, 4, 6, 3), Bottleneck),
    "vgg11": _vgg((1, 1, 2, 2, 2)),
    "vgg16": _vgg((2, 2, 3, 3, 3)),
    "lenet": Network(lambda classes, _, options: LeNet(classes, dtype=options["dtype"])),
}


def build(section: ClassifierConfig, num_classes: int, dtype: str | None = None) -> nn.Module:
    """The network of a classifier's section; `dtype` is that of activations, None: the input's."""
    options = {
        "width": section.width,
        "layout": section.layout,
        "axis_name": parallel.AXIS,
        "dtype": dtype,
    }
    return NETWORKS[section.network].build(num_classes, section, options)


def check(config: Config) -> None:
    """Raises UsageError for a network, weights or a freeze that a classifier cannot have."""
    for name in ("classifier", "annotator"):
        check_choice(f"{name}.network", getattr(config, name).network, NETWORKS)
    for name in classifiers(config):
        _check_weights(getattr(config, name), name)


def check_given(config: Config, given: Collection[str]) -> None:
    """Raises UsageError for a field on the command line that the network does not read.

    given: the fields of the command line. A config file sets them for the network that it names,
    and another network may still be chosen on the command line.
    """
    for name in ("classifier", "annotator"):
        section = getattr(config, name)
        check_choice(f"{name}.network", section.network, NETWORKS)
        unread = [field for field in SHAPE if field not in NETWORKS[section.network].reads]
        for field in unread:
            value = getattr(section, field)
            default = getattr(ClassifierConfig(), field)
            if f"{name}.{field}" in given and value != default:
                must = f"left out where {name}.network = {section.network}"
                refuse(f"{name}.{field}", value, must)


def _check_weights(section: ClassifierConfig, name: str) -> None:
    field = f"{name}.init_from"
    file = section.init_from
    if file and not NETWORKS[section.network].torch_layout:
        known = " | ".join(key for key, network in NETWORKS.items() if network.torch_layout)
        refuse(field, file, f"'' unless {name}.network is one of {known}")
    if file and not Path(file).expanduser().is_file():
        raise UsageError(f"{field} = {file}: no such file")
    if section.freeze and not file:
        refuse(f"{name}.freeze", True, f"False unless {field} names weights")


def loss(params, batch_stats, batch, key, *, model: nn.Module, section: ClassifierConfig):
    """Cross-entropy, mean over this device's examples; aux: statistics, accuracy.

    What is random (augmentation, dropout) is keyed by an example's place in the global batch. Where
    all but the head is frozen, BatchNorm reads its running statistics and leaves them as they are.
    """
    augment_key, dropout_key = jax.random.split(key)
    x = augment(to_unit_range(batch["pixels"]), augment_key, batch["position"], section.augment)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(dropout_key, batch["position"])
    dropout: Options = {"keys": keys} if NETWORKS[section.network].keyed_dropout else {}
    logits, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        normalize(x, section.normalize),
        train=not section.freeze,
        mutable=["batch_stats"],
        **dropout,
    )
    target = jax.nn.one_hot(batch["label"], logits.shape[-1])
    value = optax.softmax_cross_entropy(logits, target).mean()
    accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
    return value, (updated.get("batch_stats", batch_stats), {"accuracy": accuracy})


def make_trainer(
    model: nn.Module, section: ClassifierConfig, side: int, steps_per_dispatch: int
) -> step.Trainer:
    """The trainer of a classifier for images of `side` pixels, from random weights."""
    init = partial(_init, model=model, side=side)
    bound = partial(loss, model=model, section=section)
    trainable = head_only if section.freeze else step.train_all
    return step.make_trainer(init, bound, section, steps_per_dispatch, trainable)


def _init(key: jax.Array, *, model: nn.Module, side: int) -> Any:
    return model.init(key, jnp.zeros((1, side, side, 3)))


def head_only(params: Any) -> Any:
    """A bool per leaf: whether it belongs to the last layer."""
    head = torch_weights.head(params)
    return {
        name: jax.tree.map(lambda _, here=name == head: here, layer)
        for name, layer in params.items()
    }


def pretrained(
    trainer: step.Trainer, model: nn.Module, section: ClassifierConfig, name: str
) -> step.Trainer:
    """The trainer with an `init` that starts from the weights of `init_from`, read here, once.

    A head of another shape keeps its random weights. name: that of the section. UsageError where
    the file is missing, damaged or of another network.
    """
    file = section.init_from
    layout = NETWORKS[section.network].torch_layout
    assert layout is not None  # `check` refuses `init_from` for other networks
    # Before any training: a damaged file must not cost a generation.
    found = torch_file.read(file, f"{name}.init_from")
    loaded, report = torch_weights.load(
        step.ema_variables(trainer.abstract), found.tensors, layout, model, name, file
    )
    _log_loaded(report, found, name, file)

    def init(key: jax.Array) -> step.Variables:
        # Random weights first: leaves that the file lacks, such as a new head, keep them.
        return _overlay(trainer.init(key), parallel.replicate(loaded))

    return replace(trainer, init=init)


def _overlay(tree: Any, over: Any) -> Any:
    """The tree with the leaves of `over` in place of its own."""
    return unflatten_dict({**flatten_dict(tree), **flatten_dict(over)})


def _log_loaded(report: torch_weights.Report, found: torch_file.Read, name: str, file: str) -> None:
    """Prints which tensors were loaded, where they lay, and which were not."""
    new = "; the head starts from random weights" if report.new_head else ""
    log.say(f"{name}: {report.loaded} tensors loaded from {file}{new}")
    if found.opened or report.prefix:
        where = "/".join([*found.opened, report.prefix and f"{report.prefix}*"]).rstrip("/")
        log.say(f"{name}: they lie under {where}")
    if found.left:
        log.say(f"{name}: tensors under {', '.join(found.left)} not used")
    if report.unused:
        unused = ", ".join(report.unused)
        log.say(f"{name}: {len(report.unused)} tensors of the file not used: {unused}")


def weights_digest(file: str, name: str) -> str:
    """sha256 of a file of weights; UsageError, naming section `name`, where it cannot be read."""
    try:
        with open(Path(file).expanduser(), "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{name}.init_from = {file}: {error.strerror}") from None


def forward(
    weights: step.Variables,
    pixels: jax.Array,
    *,
    model: nn.Module,
    section: ClassifierConfig,
    features: bool = False,
) -> Any:
    """uint8[N,H,W,3] -> logits float[N,C], or the input of the last layer; on one device."""
    x = normalize(to_unit_range(pixels), section.normalize)
    out: Any = model.apply(weights, x, features=features)
    return out


def make_predict(
    model: nn.Module, section: ClassifierConfig, batch: int, features: bool = False
) -> Callable[[step.Variables, np.ndarray], np.ndarray]:
    """A function (weights, pixels uint8[N,H,W,3]) -> logits float32[N,C], in batches of `batch`.

    With `features` it gives the input of the last layer, float32[N,D], instead of the logits.
    """

    program = parallel.map_over_devices(
        partial(forward, model=model, section=section, features=features)
    )

    def predict(weights: step.Variables, pixels: np.ndarray) -> np.ndarray:
        # Without images one batch of padding still gives the shape of the answer.
        # Batches of one shape need one compiled program, whatever the size of the set.
        batches = max(1, -(-len(pixels) // batch))
        padding = np.zeros((batches * batch - len(pixels), *pixels.shape[1:]), np.uint8)
        padded = np.concatenate([pixels, padding])
        parts = [program(weights, padded[i : i + batch]) for i in range(0, len(padded), batch)]
        return np.concatenate(parts)[: len(pixels)]

    return predict
