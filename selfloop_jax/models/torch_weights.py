"""Weights under PyTorch's names, put into the networks here.

`load`: of torchvision's resnet18, resnet50, vgg11_bn and vgg16_bn, and of their like at other
widths, to be trained further. `fill`: of any network whose layers have PyTorch's names, as they
are.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from selfloop_jax.errors import UsageError
from selfloop_jax.models.resnet import BasicBlock, ResNet
from selfloop_jax.models.vgg import VGG

Weights = dict[str, np.ndarray]


LEAVES = {  # ours, theirs: layers of either kind
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


STEMS = {(7, 7): "imagenet", (3, 3): "small"}  # a ResNet's first kernel and its layout


# Endings of names that 8-bit formats add: scales, and weights that are packed with them.
SCALES = (
    *(".weight_scale", "_scale_inv", ".scb", ".absmax", ".quant_map", ".zero_point", ".qweight"),
    *(".qzeros", ".weight_packed", "._packed_params", ".weight_format"),
)


IGNORED = "num_batches_tracked"  # a counter that nothing reads where BatchNorm has a momentum


@dataclass(frozen=True)
class TorchLayout:
    """How torchvision lays out the weights of a network.

    names(model): its name of every layer that a network of this kind may have, by the layer's path
    here. conv_biases: its convolutions before BatchNorm have biases, which ours do not. flattened:
    the weight of its linear layer that reads a flattened 7x7 map, or "".
    """

    names: Callable[[Any], dict[str, str]]
    conv_biases: bool = False
    flattened: str = ""


@dataclass(frozen=True)
class Report:
    """What `load` did.

    loaded: tensors taken; new_head: whether the head stays as it was; unused: names in the file
    that nothing took; prefix: what stood before all names that were taken.
    """

    loaded: int
    new_head: bool
    unused: tuple[str, ...]
    prefix: str


def head(params: dict[str, Any]) -> str:
    """The name of a classifier's last layer in its params."""
    return max(name for name in params if name.startswith("Dense_"))


def load(
    variables: Any, weights: Weights, layout: TorchLayout, model: nn.Module, name: str, file: str
) -> tuple[Any, Report]:
    """The part of `variables` that the file fills, float32 under the same keys, and a report.

    variables: `params` and `batch_stats`, of which only the shapes count. The head is left out
    where the file has none of its shape. Raises UsageError, naming section `name` and `file`, if
    anything else is missing or has another shape.
    """
    layers = layout.names(model)
    last = head(variables["params"])
    where = f"{name}.init_from = {file}"
    leaves = flatten_dict(variables)
    every = {f"{layers['/'.join(path[1:-1])]}.{LEAVES[path[-1]]}" for path in leaves}
    prefix = common_prefix(weights, every, where)
    others = tuple(sorted(theirs for theirs in weights if not theirs.startswith(prefix)))
    weights = _without(weights, prefix)
    if layout.conv_biases:
        weights = _fold_biases(weights, layers, where)
    # A path is (collection, layer, ..., leaf): ("params", "BasicBlock_0", "Conv_0", "kernel").
    names = {path: f"{layers['/'.join(path[1:-1])]}.{LEAVES[path[-1]]}" for path in leaves}
    shapes = {path: _torch_shape(leaf.shape) for path, leaf in leaves.items()}
    wrong = [path for path in leaves if _shape(weights, names[path]) != shapes[path]]
    # Another number of classes is no error: the body is taken, and the head is trained anew.
    new_head = any(path[1] == last for path in wrong)
    if misfits := {names[path]: shapes[path] for path in wrong if path[1] != last}:
        raise UsageError(f"{where}: {_misfit(misfits, weights, model, name)}")
    taken = {path: theirs for path, theirs in names.items() if not (new_head and path[1] == last)}
    for theirs in taken.values():
        _check_numbers(weights[theirs], prefix + theirs, set(weights), where)
    filled = {
        path: _convert(weights[theirs], theirs == layout.flattened)
        for path, theirs in taken.items()
    }
    rest = sorted(prefix + theirs for theirs in set(weights) - set(taken.values()))
    unused = tuple(theirs for theirs in (*rest, *others) if not theirs.endswith(IGNORED))
    return unflatten_dict(filled), Report(len(filled), new_head, unused, prefix)


def fill(
    variables: Any, weights: Weights, name_of: Callable[[Sequence[str]], str], where: str
) -> Any:
    """All of `variables`, float32 under the same keys, from a file that holds nothing else.

    variables: `params` and `batch_stats`, of which only the shapes count. name_of: PyTorch's name
    of the layer at a path here. Raises UsageError, which `where` begins, where a tensor is missing,
    has another shape or is of another network.
    """
    leaves = flatten_dict(variables)
    names = {path: f"{name_of(path[1:-1])}.{LEAVES[path[-1]]}" for path in leaves}
    prefix = common_prefix(weights, set(names.values()), where)
    if all(name.startswith(prefix) for name in weights):
        weights = _without(weights, prefix)
    shapes = {names[path]: _torch_shape(leaf.shape) for path, leaf in leaves.items()}
    wrong = {name: shape for name, shape in shapes.items() if _shape(weights, name) != shape}
    if wrong:
        raise UsageError(f"{where}: does not fit this network: {_few(wrong, weights)}")
    others = [name for name in sorted(set(weights) - set(shapes)) if not name.endswith(IGNORED)]
    # A network with more parts is another one, whose features are not those of this name.
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        shown = ", ".join(others[:3])
        raise UsageError(f"{where}: does not fit this network: also has {shown}{more}")
    for name in shapes:
        _check_numbers(weights[name], name, set(weights), where)
    return unflatten_dict({path: _convert(weights[names[path]], False) for path in leaves})


def common_prefix(weights: Weights, wanted: Collection[str], where: str) -> str:
    """What training tools have put before the names of the wanted tensors, such as `module.`.

    Wrappers leave `module.` (DataParallel), `_orig_mod.` (torch.compile), `model.` (Lightning) or
    the name of an attribute, alone and together. UsageError, which `where` begins, where two
    networks of a file fit equally well, as a student and its teacher.
    """
    counts: Counter[str] = Counter()
    for name in weights:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    # Names of a few layers occur within others, so the whole network decides.
    (prefix, most), *rest = counts.most_common() or [("", 0)]
    if most <= counts[""] or 2 * most < len(wanted):
        return ""
    equal = [other for other, count in rest if count == most]
    if equal:
        raise UsageError(
            f"{where}: must hold one network, but has the names of {prefix!r} and {equal[0]!r}"
        )
    return prefix


def _without(weights: Weights, prefix: str) -> Weights:
    """The tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def _check_numbers(array: np.ndarray, name: str, names: Collection[str], where: str) -> None:
    """Raises UsageError for a tensor that is no weight: its training would fail, or be of no use.

    names: those of all tensors of the file.
    """
    kind = array.dtype
    if kind not in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        scaled = any(other.lower().endswith(SCALES) for other in names)
        hint = "; the file is of an 8-bit format: export it without" if scaled else ""
        raise UsageError(f"{where}: {name} is {kind}: must be floating point{hint}")
    # As they will be used: what is finite in 64 bits may not be in 32.
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise UsageError(f"{where}: {name} has values that are not finite")
    if name.endswith(LEAVES["var"]) and (values < 0).any():
        raise UsageError(f"{where}: {name} has negative values: a variance must be >= 0")


def _resnet_names(model: ResNet) -> dict[str, str]:
    """`layer2.0.conv1` and so on; `downsample` is the shortcut, which comes last here."""
    names = {"Conv_0": "conv1", "BatchNorm_0": "bn1", "Dense_0": "fc"}
    blocks: list[str] = []
    for stage, count in enumerate(model.stages):
        blocks += [f"layer{stage + 1}.{block}" for block in range(count)]
    convolutions = 2 if model.block is BasicBlock else 3
    for number, theirs in enumerate(blocks):
        ours = f"{model.block.__name__}_{number}"
        for i in range(convolutions):
            names |= {f"{ours}/Conv_{i}": f"{theirs}.conv{i + 1}"}
            names |= {f"{ours}/BatchNorm_{i}": f"{theirs}.bn{i + 1}"}
        names |= {f"{ours}/Conv_{convolutions}": f"{theirs}.downsample.0"}
        names |= {f"{ours}/BatchNorm_{convolutions}": f"{theirs}.downsample.1"}
    return names


def _vgg_names(model: VGG) -> dict[str, str]:
    """`features` counts convolution, BatchNorm and ReLU, and after each stage the pooling."""
    # The numbers between are those of ReLU and dropout.
    linear = ["classifier.0", "classifier.3", "classifier.6"]
    if model.layout != "imagenet":
        linear = linear[-1:]
    names = {f"Dense_{i}": name for i, name in enumerate(linear)}
    number = place = 0
    for convolutions in model.stages:
        for _ in range(convolutions):
            names |= {
                f"Conv_{number}": f"features.{place}",
                f"BatchNorm_{number}": f"features.{place + 1}",
            }
            number += 1
            # Convolution, BatchNorm and ReLU take a number each.
            place += 3
        place += 1
    return names


# Convolutions of torchvision's VGG have biases, those of its ResNet have none.
RESNET = TorchLayout(_resnet_names)
VGG_BN = TorchLayout(_vgg_names, conv_biases=True, flattened="classifier.0.weight")


def _fold_biases(weights: Weights, layers: dict[str, str], where: str) -> Weights:
    """Takes each convolution's bias off the mean that BatchNorm subtracts next.

    The function stays the same; our convolutions before a BatchNorm have no bias.
    """
    weights = dict(weights)
    for ours, conv in layers.items():
        # BatchNorm_i follows Conv_i here, and (x + b) - mean = x - (mean - b).
        mean = f"{layers.get(ours.replace('Conv', 'BatchNorm'))}.running_mean"
        if ours.startswith("Conv") and f"{conv}.bias" in weights and mean in weights:
            bias = weights.pop(f"{conv}.bias").astype(np.float32)
            if bias.shape != weights[mean].shape:
                raise UsageError(f"{where}: {conv}.bias is {bias.shape}, not {weights[mean].shape}")
            weights[mean] = weights[mean].astype(np.float32) - bias
    return weights


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a convolution HWIO -> OIHW, of a linear layer IO -> OI, of a vector the same."""
    return tuple(shape[i] for i in {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)])


def _convert(array: np.ndarray, flattened: bool) -> np.ndarray:
    """float32 in the order of axes used here; of a layer that reads a flattened map, its inputs."""
    array = array.astype(np.float32)
    # The map is [C,7,7] there and [7,7,C] here.
    if flattened:
        array = array.reshape(len(array), -1, 7, 7).transpose(0, 2, 3, 1).reshape(len(array), -1)
    return np.ascontiguousarray(array.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]))


def _shape(weights: Weights, name: str) -> tuple[int, ...] | None:
    return weights[name].shape if name in weights else None


def _misfit(
    misfits: dict[str, tuple[int, ...]], weights: Weights, model: nn.Module, section: str
) -> str:
    """The stem, if only its size is wrong, else the first tensors that do not fit."""
    # OIHW: what is left are the sides of the kernel.
    stem = (_shape(weights, "conv1.weight") or ())[2:]
    if set(misfits) == {"conv1.weight"} and stem in STEMS and STEMS[stem] != model.layout:
        return f"its stem is {stem[0]}x{stem[1]}; {section}.layout must be {STEMS[stem]}"
    return f"does not fit this network: {_few(misfits, weights)}"


def _few(misfits: dict[str, tuple[int, ...]], weights: Weights) -> str:
    """The first tensors that do not fit, each with the shape that it must have."""
    few = [
        f"{name} is {_shape(weights, name)} but must be {shape}"
        for name, shape in list(misfits.items())[:3]
    ]
    few += [f"and {len(misfits) - 3} more"] if len(misfits) > 3 else []
    return "; ".join(few).replace("is None", "is missing")
