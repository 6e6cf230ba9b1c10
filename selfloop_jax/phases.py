"""What a generation does: one function per phase, each from verified inputs on disk to artifacts on disk.

`loop.py` states their order. A phase returns an entry: the digests of what it made and what the record is to
say of it. It reads its inputs from disk whether or not the phase before ran in this process, but for the
weights trained last, which stay on the devices under the digest that they have on disk.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax import classify, generate, hosts, log, parallel, rng, store, train
from selfloop_jax import config as configs
from selfloop_jax.curate import annotate
from selfloop_jax.data import control, pool
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.images import Images
from selfloop_jax.errors import RunError, UsageError

Entry = dict[str, Any]
NOTHING: Entry = {"digests": {}}  # of a phase that this generation does without
# Networks that stay on the devices; of classifiers generation 0's, this one's, and that of generated images.
KEPT = {"classifier": 3, "diffusion": 1}


class Networks:
    """Every compiled program of a run, each built once."""

    def __init__(self, config: Any, classes: int, groups: int):
        side, k = config.data.image_size, configs.steps_per_dispatch(config, parallel.describe()["platform"])
        dtype = None if config.parallel.precision == "float32" else config.parallel.precision
        unet, process = generate.build(config.diffusion, classes, groups, dtype)
        nets = {"classifier": classify.build(config.classifier, classes, dtype)}
        if "annotator" in configs.classifiers(config) and groups > 1:
            nets["annotator"] = classify.build(config.annotator, groups, dtype)
        self.trainers = {"diffusion": generate.make_trainer(unet, process, config.diffusion, side, k)}
        self.predict = {}
        for name, net in nets.items():
            self.trainers[name] = classify.make_trainer(net, config[name], side, k, name)
            self.predict[name] = classify.make_predict(net, config[name], config.measure.batch)
        self.features = classify.make_predict(
            nets["classifier"], config.classifier, config.measure.batch, features=True
        )
        self.draw = generate.make_draw(unet, process, config.sample, side)


class Study:
    """What all generations share: the real images and the networks."""

    def __init__(self, config: Any, data: Dataset, stop: Callable[[], bool]):
        self.config = config
        self.data = data
        self.stop = stop
        self.weights: dict[str, dict[str, train.Variables]] = {kind: {} for kind in KEPT}  # by digest
        self.networks = Networks(config, len(data.classes), len(data.groups))
        self.inputs = {  # what a run must go on with
            "data": data.describe(config.data.source),
            "initial_weights": _weights_digests(config),
        }
        self.capacity = max(
            len(data.whole if "annotator" in self.networks.trainers else data.train),
            config.sample.count,
            *(self.pool_size(g) for g in range(config.loop.generations)),
        )

    def remember(self, kind: str, digest: str, weights: train.Variables) -> None:
        """Keeps a network that is whole on disk, with the last few before it, for the phases to come."""
        if kind in KEPT:
            kept = self.weights[kind]
            kept.pop(digest, None)
            kept[digest] = weights
            for old in list(kept)[: -KEPT[kind]]:
                del kept[old]

    def pool_size(self, generation: int) -> int:
        """Images in the pool of a generation."""
        config = self.config
        of = 0 if config.loop.control == "no_synthetic" else generation
        return pool.size(config.pool, of, len(self.data.train), config.sample.count)


@dataclass
class Generation:
    """One generation being made: `out` receives its artifacts, `home` holds the generations before it."""

    study: Study
    number: int
    out: Path
    home: Path
    entries: dict[str, Entry] = field(default_factory=dict)  # by phase, those that are done
    parents: dict[str, str] = field(default_factory=dict)  # digests of what this phase read of the past

    @property
    def folder(self) -> Path:
        """Where this generation's artifacts go."""
        return store.generation_dir(self.out, self.number)

    @property
    def address(self) -> rng.Address:
        """The address of all that is random in this generation."""
        return (self.study.config.seed, "generation", self.number)

    def digest(self, generation: int, name: str) -> str:
        """The recorded digest of an artifact of this or an earlier generation."""
        if generation == self.number:
            return next(e["digests"][name] for e in self.entries.values() if name in e["digests"])
        path = store.generation_dir(self.home, generation) / "record.json"
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
        return section.control == "none" or (not self.number and bool(section.generation_zero))

    @cached_property
    def pool(self) -> Images:
        """The training set of this generation; after a resume, checked to be the one it began with."""
        study = self.study
        earlier = pool.needs(study.config.pool, self.number)
        if study.config.loop.control == "none":
            generated = [self.samples(g) for g in earlier]
        else:
            generated = real_in_place(study.config, study.data, earlier, self.parents)
        address = (study.config.seed, "pool")
        images = pool.build(
            study.config.pool, address, self.number, study.data.train, study.data.reserve, generated
        )
        if "pool" in self.entries and pool_digest(images) != self.digest(self.number, "pool"):
            raise RunError(f"{self.folder / 'pool.json'}: the real images are no longer those recorded")
        return images

    def checkpoints(self, generation: int, name: str) -> train.Checkpoints:
        """The checkpoints of one training phase of this or an earlier generation."""
        base = self.out if generation == self.number else self.home
        section = self.study.config.checkpoint
        folder = store.generation_dir(base, generation) / name
        return train.Checkpoints(folder, section.interval_steps, section.keep)

    def trained(self, generation: int, name: str) -> train.Variables:
        """The network that a training phase ended with, verified, on the devices."""
        kind = "classifier" if name == "generated_classifier" else name
        steps = _schedule(self.study.config[kind], generation).steps
        digest = self.digest(generation, name)
        weights = self.study.weights.get(kind, {}).get(digest)
        if weights is None:
            abstract = self.study.networks.trainers[kind].abstract
            state = self.checkpoints(generation, name).load(steps, abstract, digest)
            weights = parallel.replicate(train.averaged(state))
        self.study.remember(kind, digest, weights)
        return weights

    def progress(self, phase: str) -> log.Progress:
        """The progress of one of this generation's phases."""
        section = self.study.config.log
        metrics = log.Metrics(self.out / "metrics.jsonl")
        return log.Progress(metrics, self.number, phase, section.every_steps, section.every_seconds)


def read_samples(home: Path, generation: int, digest: str) -> Images:
    """The drawn set of one generation of the run in `home`; RunError unless its bytes have the digest."""
    arrays = store.read_npz(store.generation_dir(home, generation) / "samples.npz", digest)
    return Images(**arrays, origin=np.full(len(arrays["id"]), generation, np.int32))


def real_in_place(config: Any, data: Dataset, earlier: range, parents: dict[str, str]) -> list[Images]:
    """What a control puts in the place of the sets drawn in `earlier` generations.

    Notes in `parents` what it read of the run that the control belongs to. UsageError on a short reserve.
    """
    kind, real = config.loop.control, data.train.joint(len(data.classes), len(data.groups))
    if kind == "no_synthetic" or not earlier:
        return []
    if kind == "fresh_real":
        joints = [control.joint_like(real, config.sample.count)] * len(earlier)
    else:
        home = Path(config.loop.control_of).expanduser()
        joints = [control.joint_of(_replaced(home, g, parents), real) for g in earlier]
    # Pools that grow begin with the same images; a pool of the latest set alone has images of its own.
    address = (config.seed, "control", kind, *([earlier.start] if earlier.start else []))
    return control.stand_ins(address, data.candidates, joints, f"loop.control = {kind}")


def _replaced(home: Path, generation: int, parents: dict[str, str]) -> Images:
    """What the run in `home` drew in a generation, verified."""
    path = store.generation_dir(home, generation) / "record.json"
    if not path.exists():
        raise UsageError(f"loop.control_of = {home}: allowed are runs with a finished {path.parent.name}")
    digest = store.read_json(path).get("digests", {}).get("samples.npz")
    if digest is None:
        raise UsageError(f"loop.control_of = {home}: allowed are runs that drew images")
    parents[f"control_of/{path.parent.name}/samples.npz"] = digest
    return read_samples(home, generation, digest)


def _weights_digests(config: Any) -> dict[str, str]:
    """By field, the digests of the files that classifiers start from."""
    found = {
        f"{name}.init_from": classify.weights_digest(config[name], name)
        for name in configs.classifiers(config)
    }
    return {field: digest for field, digest in found.items() if digest}


def _schedule(section: Any, generation: int) -> Any:
    """Steps and learning rate of a generation: the section itself at first, then its `later`."""
    return section.later if generation else section


def pool_digest(images: Images) -> str:
    """sha256 of all that training reads of a pool, and of where its images come from."""
    names = ("pixels", "label", "group", "origin", "id")
    return store.digest_arrays({name: getattr(images, name) for name in names})


def annotator_phase(gen: Generation) -> Entry:
    """In generation 0 trains the group classifier on real training images, frozen from then on.

    On those before subsampling: it is to measure the bias, not to have it.
    """
    if gen.number or "annotator" not in gen.study.networks.trainers or not gen.generates:
        return NOTHING
    data = gen.study.data
    known = data.whole.take(data.whole.group >= 0)
    entry = _training(gen, "annotator", "annotator", replace(known, label=known.group), None)
    gen.entries["annotator"] = entry
    held_out = data.validation
    found = annotate.best_group(_group_logits(gen, held_out.pixels), held_out.label, data.members)
    counts = annotate.confusion(held_out.label, held_out.group, found, data.members)
    return entry | {"annotator": {"split": "validation", "confusion": counts}}


def _group_logits(gen: Generation, pixels: np.ndarray) -> np.ndarray:
    """float32[N,G] of the frozen annotator."""
    return gen.study.networks.predict["annotator"](gen.trained(0, "annotator"), pixels)


def pool_phase(gen: Generation) -> Entry:
    """Builds the pool; it is not stored, since its parents are."""
    images, data = gen.pool, gen.study.data
    origins = {int(g): int(n) for g, n in zip(*np.unique(images.origin, return_counts=True), strict=True)}
    source = images.id if images.source_id is None else images.source_id
    return {
        "digests": {"pool": pool_digest(images)},
        "pool": {
            "size": len(images),
            "real": origins.pop(-1, 0),
            "generated": origins,
            "joint": images.joint(len(data.classes), len(data.groups)),
            "unknown_group": int((images.group < 0).sum()),
            **({} if origins else {"distinct_sources": len(np.unique(source))}),
        },
    }


def _training(gen: Generation, name: str, kind: str, images: Images, start: train.Variables | None) -> Entry:
    """Trains one network of `kind` on `images`, from `start` or from scratch."""
    study = gen.study
    trainer, schedule = study.networks.trainers[kind], _schedule(study.config[kind], gen.number)
    address = (*gen.address, name)
    progress = gen.progress(name)

    def begin() -> train.TrainState:
        weights = start or trainer.init(rng.key((*address, "init")))
        return trainer.start(weights, float(schedule.learning_rate), float(schedule.steps))

    digest, state = train.fit(
        trainer,
        begin,
        images,
        study.capacity,
        study.config.data.placement,
        address,
        schedule.steps,
        gen.checkpoints(gen.number, name),
        progress,
        study.stop,
    )
    study.remember(kind, digest, train.averaged(state))
    return {"digests": {name: digest}, "images_per_second": progress.rate}


def _previous(gen: Generation, kind: str) -> train.Variables | None:
    """What training starts from: the network of the generation before, where the config says so."""
    section = gen.study.config[kind]
    if not gen.number or section.later.start == "scratch":
        return None
    return gen.trained(gen.number - 1, kind)


def diffusion_phase(gen: Generation) -> Entry:
    """Trains the generator on the pool."""
    if not gen.generates:
        return NOTHING
    return _training(gen, "diffusion", "diffusion", gen.pool, _previous(gen, "diffusion"))


def _conditions(gen: Generation) -> tuple[np.ndarray, np.ndarray]:
    """Label and group asked of each image drawn in this generation."""
    data = gen.study.data
    return generate.conditions(
        gen.study.config.sample,
        (*gen.address, "sample"),
        gen.pool,
        data.train,
        data.members,
    )


def sample_phase(gen: Generation) -> Entry:
    """Draws images in chunks; a chunk on disk is not drawn again."""
    if not gen.generates:
        return NOTHING
    section = gen.study.config.sample
    chunk = section.batch_per_device * parallel.device_count()
    label, group = _conditions(gen)
    params = gen.trained(gen.number, "diffusion")["params"]
    key = parallel.replicate(rng.key((*gen.address, "sample", "noise")))
    firsts = range(0, section.count, chunk)
    paths = [gen.folder / "samples.part" / f"{first:08d}.npz" for first in firsts]
    progress = gen.progress("sample")
    there = hosts.led(np.array([path.exists() for path in paths]))
    progress.begin(int(there.sum()), len(paths), chunk)
    with ThreadPoolExecutor(1) as disk:  # a chunk is written while the next one is drawn
        writing: Future | None = None
        for done, (first, path) in enumerate(zip(firsts, paths, strict=True), start=1):
            if there[done - 1]:
                continue
            ids = np.arange(first, first + chunk, dtype=np.uint32)
            kept = min(chunk, section.count - first)
            rows = np.minimum(ids, section.count - 1)
            pixels = gen.study.networks.draw(params, key, ids, label[rows], group[rows])
            if writing:
                writing.result()
            writing = disk.submit(store.write_npz, path, {"id": ids[:kept], "pixels": pixels[:kept]})
            progress.advance(done)
            if gen.study.stop():
                writing.result()
                raise train.Stopped(f"{progress.where}, image {first + kept}")
        if writing:
            writing.result()
    progress.end()
    hosts.meet()
    pixels = _drawn(gen)
    return {
        "digests": {"pixels": store.digest_arrays({"pixels": pixels})},
        "images_per_second": progress.rate,
    }


def _drawn(gen: Generation) -> np.ndarray:
    """uint8[count,H,W,3]: the chunks joined."""
    paths = sorted((gen.folder / "samples.part").glob("*.npz"))
    return np.concatenate([store.read_npz(path)["pixels"] for path in paths])


def classifier_phase(gen: Generation) -> Entry:
    """Trains the classifier on the pool."""
    return _training(gen, "classifier", "classifier", gen.pool, _previous(gen, "classifier"))


def label_phase(gen: Generation) -> Entry:
    """Labels and groups the drawn images and writes samples.npz."""
    if not gen.generates:
        return NOTHING
    config, data = gen.study.config, gen.study.data
    pixels = _drawn(gen)
    if store.digest_arrays({"pixels": pixels}) != gen.digest(gen.number, "pixels"):
        raise RunError(f"{gen.folder / 'samples.part'}: damaged: its digest is not the recorded one")
    condition, asked_group = _conditions(gen)
    annotators = {"previous": gen.number, "frozen": 0}
    logits = {
        name: gen.study.networks.predict["classifier"](gen.trained(generation, "classifier"), pixels)
        for name, generation in annotators.items()
        if config.loop.label_source == name
    }
    label = annotate.label(config.loop, condition, logits)
    annotated = "annotator" in gen.study.networks.trainers
    group_logits = _group_logits(gen, pixels) if annotated else None
    digest = store.write_npz(
        gen.folder / "samples.npz",
        {
            "pixels": pixels,
            "label": label,
            "group": annotate.group(config.loop, asked_group, label, pixels, group_logits, data),
            "id": np.arange(len(pixels), dtype=np.uint32),
            "condition": condition,
        },
    )
    return {"digests": {"samples.npz": digest}}


def generated_classifier_phase(gen: Generation) -> Entry:
    """Trains a classifier on this generation's images alone, for the score of arXiv 1905.10887."""
    wanted = gen.study.config.measure.generated_only
    if wanted == "never" or (wanted == "first" and gen.number) or not gen.generates:
        return NOTHING
    return _training(gen, "generated_classifier", "classifier", gen.samples(gen.number), None)
