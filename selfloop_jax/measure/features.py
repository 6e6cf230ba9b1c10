"""Frozen networks whose features fidelity is measured in."""

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
from selfloop_jax.runtime import environment, keys, store
from selfloop_jax.runtime.cli import check_registered
from selfloop_jax.runtime.workdir import generation_dir

WIDTHS = (32, 64, 128)  # channels of the layers of `random_conv`
# Images at a time.
BATCH = 256

Extract = Callable[[np.ndarray], np.ndarray]  # pixels uint8[N,side,side,3] -> float32[N,D]


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network: its name in a report, the side of its images (None: any), its digest."""

    name: str
    extract: Extract
    side: int | None = None
    digest: str | None = None


def load(features: str) -> FeatureNetwork:
    """The network of `--features`: one of NETWORKS, or the first classifier of a workdir."""
    if features in NETWORKS:
        # No run is named, so threads and devices are those of the default config.
        environment_of(Config())
        return FeatureNetwork(features, NETWORKS[features])
    if not Path(features).is_dir():
        raise UsageError(
            f"--features={features}: must be {' | '.join(NETWORKS)} | the workdir of a run"
        )
    return _run_classifier(Path(features))


def environment_of(config: Config) -> None:
    """Fixes threads and devices as a run with this config does, before a backend starts."""
    section = config.parallel
    environment.configure(section.nproc, section.cpu_devices, section.deterministic)


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


NETWORKS: dict[str, Extract] = {"pixels": pixels, "random_conv": random_conv}


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
