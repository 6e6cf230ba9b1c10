"""What the phases of a run share: real images, compiled networks, and the artifacts of generations."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.images import Images
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.loop import controls, pool_rules
from selfloop_jax.runtime import environment, log, parallel, rng, store, workdir
from selfloop_jax.sampling import sampler
from selfloop_jax.training import classifier, generator, step
from selfloop_jax.training.checkpoints import Checkpoints

Entry = dict[str, Any]


SKIPPED: Entry = {"digests": {}}  # of a phase that this generation does without


# Networks that stay on the devices; of classifiers generation 0's, this one's, and that of
# generated images.
WEIGHTS_IN_MEMORY = {"classifier": 3, "diffusion": 1}


class Networks:
    """Every compiled program of a run, each built once."""

    def __init__(self, config: configs.Config, classes: int, groups: int):
        side, k = (
            config.data.image_size,
            configs.steps_per_dispatch(config, environment.device_info()["platform"]),
        )
        dtype = None if config.parallel.precision == "float32" else config.parallel.precision
        unet, process = generator.build(config.diffusion, classes, groups, dtype)
        nets = {"classifier": classifier.build(config.classifier, classes, dtype)}
        if "annotator" in configs.classifiers(config) and groups > 1:
            nets["annotator"] = classifier.build(config.annotator, groups, dtype)
        self.trainers = {
            "diffusion": generator.make_trainer(unet, process, config.diffusion, side, k)
        }
        self.predict = {}
        for name, net in nets.items():
            self.trainers[name] = classifier.make_trainer(net, getattr(config, name), side, k, name)
            self.predict[name] = classifier.make_predict(
                net, getattr(config, name), config.measure.batch
            )
        self.features = classifier.make_predict(
            nets["classifier"], config.classifier, config.measure.batch, features=True
        )
        self.draw = sampler.make_sampler(unet, process, config.sample, side)


class RunContext:
    """What all generations share: the real images and the networks."""

    def __init__(self, config: configs.Config, data: Dataset, stop: Callable[[], bool]):
        self.config = config
        self.data = data
        self.stop = stop
        self.weights: dict[str, dict[str, step.Variables]] = {
            kind: {} for kind in WEIGHTS_IN_MEMORY
        }  # by digest
        self.networks = Networks(config, len(data.classes), len(data.groups))
        self.inputs = {  # what a run must go on with
            "data": data.describe(config.data.source),
            "initial_weights": _initial_weights_digests(config),
        }
        self.capacity = max(
            len(data.whole if "annotator" in self.networks.trainers else data.train),
            config.sample.count,
            *(self.pool_size(g) for g in range(config.loop.generations)),
        )

    def remember(self, kind: str, digest: str, weights: step.Variables) -> None:
        """Keeps a network that is whole on disk, with the last few before it, for the phases to come."""
        if kind in WEIGHTS_IN_MEMORY:
            kept = self.weights[kind]
            kept.pop(digest, None)
            kept[digest] = weights
            for old in list(kept)[: -WEIGHTS_IN_MEMORY[kind]]:
                del kept[old]

    def pool_size(self, generation: int) -> int:
        """Images in the pool of a generation."""
        config = self.config
        of = 0 if config.loop.control == "no_synthetic" else generation
        return pool_rules.size(config.pool, of, len(self.data.train), config.sample.count)


@dataclass
class GenerationRun:
    """One generation being made: `out` receives its artifacts, `home` holds the generations before it."""

    study: RunContext
    number: int
    out: Path
    home: Path
    entries: dict[str, Entry] = field(default_factory=dict)  # by phase, those that are done
    parents: dict[str, str] = field(
        default_factory=dict
    )  # digests of what this phase read of the past

    @property
    def folder(self) -> Path:
        """Where this generation's artifacts go."""
        return workdir.generation_dir(self.out, self.number)

    @property
    def address(self) -> rng.KeyPath:
        """The address of all that is random in this generation."""
        return (self.study.config.seed, "generation", self.number)

    def digest(self, generation: int, name: str) -> str:
        """The recorded digest of an artifact of this or an earlier generation."""
        if generation == self.number:
            return next(e["digests"][name] for e in self.entries.values() if name in e["digests"])
        path = workdir.generation_dir(self.home, generation) / "record.json"
        digest = store.read_json(path).get("digests", {}).get(name)
        if digest is None:
            raise RunError(f"{path}: damaged: it has no digest of {name}")
        return self.parents.setdefault(f"gen_{generation:04d}/{name}", digest)

    def samples(self, generation: int) -> Images:
        """What the generator of this or an earlier generation drew, verified."""
        base = self.out if generation == self.number else self.home
        return read_samples(base, generation, self.digest(generation, "samples.npz"))

    @property
    def generates(self) -> bool:
        """Whether this generation trains a generator: a control does not, but for one that it took over."""
        section = self.study.config.loop
        return section.control == "none" or (not self.number and bool(section.branch_from))

    @cached_property
    def pool(self) -> Images:
        """The training set of this generation; after a resume, checked to be the one it began with."""
        study = self.study
        earlier = pool_rules.source_generations(study.config.pool, self.number)
        if study.config.loop.control == "none":
            generated = [self.samples(g) for g in earlier]
        else:
            generated = control_images(study.config, study.data, earlier, self.parents)
        address = (study.config.seed, "pool")
        images = pool_rules.build(
            study.config.pool, address, self.number, study.data.train, study.data.reserve, generated
        )
        if "pool" in self.entries and pool_digest(images) != self.digest(self.number, "pool"):
            raise RunError(
                f"{self.folder / 'pool.json'}: the real images are no longer those recorded"
            )
        return images

    def checkpoints(self, generation: int, name: str) -> Checkpoints:
        """The checkpoints of one training phase of this or an earlier generation."""
        base = self.out if generation == self.number else self.home
        section = self.study.config.checkpoint
        folder = workdir.generation_dir(base, generation) / name
        return Checkpoints(folder, section.interval_steps, section.keep)

    def trained(self, generation: int, name: str) -> step.Variables:
        """The network that a training phase ended with, verified, on the devices."""
        kind = "classifier" if name == "generated_classifier" else name
        steps = training_section(getattr(self.study.config, kind), generation).steps
        digest = self.digest(generation, name)
        weights = self.study.weights.get(kind, {}).get(digest)
        if weights is None:
            abstract = self.study.networks.trainers[kind].abstract
            state = self.checkpoints(generation, name).load(steps, abstract, digest)
            weights = parallel.replicate(step.ema_variables(state))
        self.study.remember(kind, digest, weights)
        return weights

    def progress(self, phase: str) -> log.Progress:
        """The progress of one of this generation's phases."""
        section = self.study.config.log
        metrics = log.Metrics(self.out / "metrics.jsonl")
        return log.Progress(metrics, self.number, phase, section.every_steps)


def read_samples(home: Path, generation: int, digest: str) -> Images:
    """The drawn set of one generation of the run in `home`; RunError unless its bytes have the digest."""
    arrays = store.read_npz(workdir.generation_dir(home, generation) / "samples.npz", digest)
    return Images(**arrays, origin=np.full(len(arrays["id"]), generation, np.int32))


def control_images(
    config: configs.Config, data: Dataset, earlier: range, parents: dict[str, str]
) -> list[Images]:
    """What a control puts in the place of the sets drawn in `earlier` generations.

    Notes in `parents` what it read of the run that the control belongs to. UsageError on a short
    reserve.
    """
    kind, real = config.loop.control, data.train.joint(len(data.classes), len(data.groups))
    if kind == "no_synthetic" or not earlier:
        return []
    if kind == "fresh_real":
        joints = [controls.counts_like(real, config.sample.count)] * len(earlier)
    else:
        home = Path(config.loop.control_of).expanduser()
        joints = [controls.counts_of(_matched_samples(home, g, parents), real) for g in earlier]
    # Pools that grow begin with the same images; a pool of the latest set alone has images of its
    # own.
    address = (config.seed, "control", kind, *([earlier.start] if earlier.start else []))
    return controls.matched_real_sets(address, data.candidates, joints, f"loop.control = {kind}")


def _matched_samples(home: Path, generation: int, parents: dict[str, str]) -> Images:
    """What the run in `home` drew in a generation, verified."""
    path = workdir.generation_dir(home, generation) / "record.json"
    if not path.exists():
        raise UsageError(
            f"loop.control_of = {home}: allowed are runs with a finished {path.parent.name}"
        )
    digest = store.read_json(path).get("digests", {}).get("samples.npz")
    if digest is None:
        raise UsageError(f"loop.control_of = {home}: allowed are runs that drew images")
    parents[f"control_of/{path.parent.name}/samples.npz"] = digest
    return read_samples(home, generation, digest)


def _initial_weights_digests(config: configs.Config) -> dict[str, str]:
    """By field, the digests of the files that classifiers start from."""
    found = {
        f"{name}.init_from": classifier.weights_digest(getattr(config, name), name)
        for name in configs.classifiers(config)
    }
    return {field: digest for field, digest in found.items() if digest}


def training_section(
    section: configs.DiffusionConfig | configs.LoopClassifierConfig, generation: int
) -> configs.TrainingConfig | configs.LaterConfig:
    """Steps and learning rate of a generation: the section itself at first, then its `later`."""
    return section.later if generation else section


def pool_digest(images: Images) -> str:
    """sha256 of all that training reads of a pool, and of where its images come from."""
    names = ("pixels", "label", "group", "origin", "id")
    return store.digest_arrays({name: getattr(images, name) for name in names})
