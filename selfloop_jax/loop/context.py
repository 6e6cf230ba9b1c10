"""What the generations of a self-consuming loop share, and one generation under way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.config import Config
from selfloop_jax.data import pool_rules
from selfloop_jax.data.controls import CONTROLS
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.images import Images
from selfloop_jax.diffusion import processes
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.loop import control_images
from selfloop_jax.loop.samples import read_samples
from selfloop_jax.loop.stage import StageRun
from selfloop_jax.measure import features
from selfloop_jax.runtime import environment, log, rng, store
from selfloop_jax.runtime.tensorboard import TensorBoard
from selfloop_jax.runtime.workdir import generation_dir
from selfloop_jax.sampling import sampler
from selfloop_jax.training import classifier, generator, step
from selfloop_jax.training.checkpoints import Checkpoints, load_weights

# Networks that stay on the devices. Of classifiers: that of generation 0, this generation's, and
# the one trained last.
WEIGHTS_IN_MEMORY = {"classifier": 3, "diffusion": 1}


def has_annotator(config: Config, groups: int) -> bool:
    """Whether a run has an annotator: with one group there is nothing to annotate."""
    return "annotator" in configs.classifiers(config) and groups > 1


def trains_generator(config: Config, generation: int) -> bool:
    """Whether a generation has a generator: a control has none but that of its branch."""
    return config.loop.control == "none" or (generation == 0 and bool(config.loop.branch_from))


def trains_annotator(config: Config, groups: int, generation: int) -> bool:
    """Whether a generation trains the annotator: only a generator's images have to be annotated."""
    first = generation == 0
    return first and has_annotator(config, groups) and trains_generator(config, generation)


def pool_capacity(config: Config, train: int, generation: int) -> int:
    """The most images that the pool of a generation can have; `train`: real training images."""
    # Without synthetic images every generation has the pool of generation 0.
    control = CONTROLS.get(config.loop.control)
    of = 0 if control and not control.held_out else generation
    return pool_rules.capacity(config.pool, of, train, config.sample.count)


def capacity(config: Config, groups: int, train: int, before_subsampling: int) -> int:
    """The images that every training set of a run is padded to.

    All have one size, so that nothing recompiles as they grow. train: real training images;
    before_subsampling: of those, all that there were before the bias.
    """
    pools = [pool_capacity(config, train, g) for g in range(config.loop.generations)]
    # The annotator learns from the images before subsampling, which may be more than any pool.
    annotated = before_subsampling if has_annotator(config, groups) else 0
    return max(annotated, train, config.sample.count, *pools)


class Networks:
    """Every compiled program of a run, each built once. Reads no file.

    pixel_rms: that of the real training images, which every generation's process is made for.
    """

    def __init__(self, config: Config, classes: int, groups: int, pixel_rms: float):
        side = config.data.image_size
        # On a CPU a scan over steps costs several times the steps themselves.
        platform = environment.device_info()["platform"]
        per_dispatch = configs.steps_per_dispatch(config, platform)
        dtype = configs.activation_dtype(config)
        # The process stays the same when later pools have other pixels.
        diffusion = processes.for_data(config.diffusion, pixel_rms)
        unet, process = generator.build(diffusion, classes, groups, dtype)
        self.unet = unet
        self.process = process
        nets = {"classifier": classifier.build(config.classifier, classes, dtype)}
        if has_annotator(config, groups):
            nets["annotator"] = classifier.build(config.annotator, groups, dtype)
        self.classifiers = nets
        self.trainers = {
            "diffusion": generator.make_trainer(unet, process, diffusion, side, per_dispatch)
        }
        self.predict = {}
        batch = config.measure.batch
        for name, net in nets.items():
            section = getattr(config, name)
            self.trainers[name] = classifier.make_trainer(net, section, side, per_dispatch)
            self.predict[name] = classifier.make_predict(net, section, batch)
        self.features = classifier.make_predict(
            nets["classifier"], config.classifier, batch, features=True
        )
        self.sampler = sampler.make_sampler(unet, process, config.sample, side)
        self._config = config

    def read_initial_weights(self) -> dict[str, str]:
        """Has classifiers start from the files that the config names; their digests by field.

        UsageError where a file is missing, damaged or of another network.
        """
        digests = {}
        for name, net in self.classifiers.items():
            section = getattr(self._config, name)
            if section.init_from:
                self.trainers[name] = classifier.pretrained(self.trainers[name], net, section, name)
                digests[f"{name}.init_from"] = classifier.weights_digest(section.init_from, name)
        return digests


class RunContext:
    """What all generations share: the real images, the networks, and the weights trained last.

    feature_network is that of `measure.features`, or None for the classifier of generation 0.
    """

    def __init__(self, config: Config, data: Dataset, stop: Callable[[], bool]):
        self.config = config
        self.data = data
        self.stop = stop
        self.tensorboard: TensorBoard | None = None  # the runner opens it in the workdir
        self.networks = Networks(config, len(data.classes), len(data.groups), data.pixel_rms)
        # Read here, so that a damaged file ends the run before anything is trained.
        self.feature_network = features.of_run(config)
        if self.feature_network:
            extract = remember(self.feature_network.extract, data.train.pixels)
            self.feature_network = replace(self.feature_network, extract=extract)
        weights = self.networks.read_initial_weights()
        if self.feature_network and self.feature_network.digest:
            weights["measure.features"] = self.feature_network.digest
        self.inputs: store.Json = {
            "data": data.describe(config.data.source),
            "initial_weights": weights,
        }
        self._weights: dict[str, dict[str, step.Variables]] = {
            kind: {} for kind in WEIGHTS_IN_MEMORY
        }
        self.capacity = capacity(
            config, len(data.groups), len(data.train), len(data.train_unbiased)
        )

    @property
    def stand_in(self) -> str | None:
        """The note that the images are not the real ones; None if they are."""
        return self.data.provenance.get("stand_in")

    def cache_weights(self, kind: str, digest: str, weights: step.Variables) -> None:
        """Keeps a network that is on disk under `digest` for later phases, and drops older ones."""
        if kind not in WEIGHTS_IN_MEMORY:
            return
        kept = self._weights[kind]
        # Removed first: a dict keeps the place of a key that it has.
        kept.pop(digest, None)
        kept[digest] = weights
        for old in list(kept)[: -WEIGHTS_IN_MEMORY[kind]]:
            del kept[old]

    def cached_weights(self, kind: str, digest: str) -> step.Variables | None:
        """A network that is still on the devices, or None."""
        return self._weights.get(kind, {}).get(digest)


def remember(extract: features.Extract, pixels: np.ndarray) -> features.Extract:
    """The same function, which computes the features of one array of pixels only once."""
    # Every generation asks for those of all real training images, and the network never changes.
    found: list[np.ndarray] = []

    def call(images: np.ndarray) -> np.ndarray:
        # The same object, which nothing changes: no digest has to be taken.
        if images is not pixels:
            return extract(images)
        if not found:
            found.append(extract(images))
        return found[0]

    return call


def network_of(phase: str) -> str:
    """The network that a training, named as its checkpoints are, trains."""
    return "classifier" if phase.startswith(("generated_classifier", "classifier_")) else phase


def repeats(config: Config) -> list[str]:
    """Names of the further trainings of the classifier on every pool."""
    return [f"classifier_{number}" for number in range(1, config.measure.trainings)]


@dataclass(frozen=True)
class Artifacts:
    """The artifacts of one generation on disk, each verified against its digest when it is read.

    digest(name) gives the sha256 that an artifact must have.
    """

    context: RunContext
    generation: int
    workdir: Path
    digest: Callable[[str], str]

    @property
    def folder(self) -> Path:
        """The generation's folder."""
        return generation_dir(self.workdir, self.generation)

    def samples(self) -> Images:
        """The generated images with the labels and groups that pools take."""
        return read_samples(self.workdir, self.generation, self.digest("samples.npz"))

    def checkpoints(self, phase: str) -> Checkpoints:
        """The checkpoints of a training phase."""
        section = self.context.config.checkpoint
        return Checkpoints(
            self.folder / phase, section.interval_steps, section.keep, section.interval_minutes
        )

    def weights(self, phase: str) -> step.Variables:
        """The network that a training phase ended with, on the devices."""
        network = network_of(phase)
        digest = self.digest(phase)
        weights = self.context.cached_weights(network, digest)
        if weights is None:
            config = self.context.config
            steps = configs.training_section(getattr(config, network), self.generation).steps
            trainer = self.context.networks.trainers[network]
            weights = load_weights(config, self.folder / phase, steps, trainer, digest)
        # Noted again where it was found: the network used last is dropped last.
        self.context.cache_weights(network, digest, weights)
        return weights


@dataclass
class GenerationRun(StageRun):
    """One generation of the loop under way."""

    context: RunContext

    @property
    def key_path(self) -> rng.KeyPath:
        """The key path of all that is random in this generation."""
        return (self.context.config.seed, "generation", self.number)

    def artifacts(self, generation: int) -> Artifacts:
        """The artifacts of this or an earlier generation; what is read of it is noted."""
        return Artifacts(
            self.context,
            generation,
            self.workdir_of(generation),
            lambda name: self.digest(generation, name),
        )

    def samples(self, generation: int) -> Images:
        """The images generated in this or an earlier generation."""
        return self.artifacts(generation).samples()

    def weights(self, generation: int, phase: str) -> step.Variables:
        """The network that a training phase of this or an earlier generation ended with."""
        return self.artifacts(generation).weights(phase)

    @property
    def trains_generator(self) -> bool:
        """Whether this generation has a generator."""
        return trains_generator(self.context.config, self.number)

    @cached_property
    def pool(self) -> Images:
        """The training set; after a resume, checked to be the one of before."""
        config = self.context.config
        data = self.context.data
        earlier = pool_rules.source_generations(config.pool, self.number)
        if config.loop.control == "none":
            generated: list[Images] | None = [self.samples(g) for g in earlier]
        else:
            generated = control_images.control_sets(config, data, earlier, self.inputs_read)
        # No generation in it: the rule decides which choices the generations share.
        key_path = (config.seed, "pool")
        images = pool_rules.build(
            config.pool, key_path, self.number, data.train, data.reserve, generated
        )
        most = pool_capacity(config, len(data.train), self.number)
        if len(images) > most:
            raise UsageError(
                f"pool.rule = {config.pool.rule}: must make pools of at most their capacity, "
                f"{most} images in generation {self.number}, not {len(images)}"
            )
        # After a resume the folder or the archive of the real images may have changed.
        if "pool" in self.results and pool_digest(images) != self.digests["pool"]:
            raise RunError(
                f"{self.folder / 'pool.json'}: the real images are no longer those recorded"
            )
        return images

    def progress(self, phase: str) -> log.Progress:
        """The progress of one phase."""
        every = self.context.config.log.every_steps
        metrics = log.Metrics(self.workdir / "metrics.jsonl", self.context.tensorboard)
        return log.Progress(metrics, self.number, phase, every)


def pool_digest(images: Images) -> str:
    """sha256 of all that training reads of a pool, and of where its images come from."""
    names = ("pixels", "label", "group", "origin", "id")
    return store.digest_arrays({name: getattr(images, name) for name in names})
