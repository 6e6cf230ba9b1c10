"""What a generation does: one function per phase, each from verified inputs on disk to artifacts on disk.

`loop.py` states their order. A phase returns an entry: the digests of what it made and what the
record is to say of it. It reads its inputs from disk whether or not the phase before ran in this
process, but for the weights trained last, which stay on the devices under the digest that they have
on disk.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from selfloop_jax.curate.label import (
    assign_groups,
    assign_labels,
    confusion_matrices,
    most_likely_group,
)
from selfloop_jax.data.images import Images
from selfloop_jax.errors import RunError
from selfloop_jax.loop.context import SKIPPED, Entry, GenerationRun, pool_digest, training_section
from selfloop_jax.runtime import keys, multihost, parallel, store
from selfloop_jax.sampling import requests
from selfloop_jax.training import fit, step


def annotator_phase(gen: GenerationRun) -> Entry:
    """In generation 0 trains the group classifier on real training images, frozen from then on.

    On those before subsampling: it is to measure the bias, not to have it.
    """
    if gen.number or "annotator" not in gen.study.networks.trainers or not gen.generates:
        return SKIPPED
    data = gen.study.data
    known = data.whole.take(data.whole.group >= 0)
    entry = _training(gen, "annotator", "annotator", replace(known, label=known.group), None)
    gen.entries["annotator"] = entry
    held_out = data.validation
    found = most_likely_group(_group_logits(gen, held_out.pixels), held_out.label, data.members)
    counts = confusion_matrices(held_out.label, held_out.group, found, data.members)
    return entry | {"annotator": {"split": "validation", "confusion": counts}}


def _group_logits(gen: GenerationRun, pixels: np.ndarray) -> np.ndarray:
    """float32[N,G] of the frozen annotator."""
    return gen.study.networks.predict["annotator"](gen.trained(0, "annotator"), pixels)


def pool_phase(gen: GenerationRun) -> Entry:
    """Builds the pool; it is not stored, since its parents are."""
    images, data = gen.pool, gen.study.data
    origins = {
        int(g): int(n) for g, n in zip(*np.unique(images.origin, return_counts=True), strict=True)
    }
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


def _training(
    gen: GenerationRun, name: str, kind: str, images: Images, start: step.Variables | None
) -> Entry:
    """Trains one network of `kind` on `images`, from `start` or from scratch."""
    study = gen.study
    trainer, schedule = (
        study.networks.trainers[kind],
        training_section(getattr(study.config, kind), gen.number),
    )
    address = (*gen.address, name)
    progress = gen.progress(name)

    def begin() -> step.TrainState:
        weights = start or trainer.init(keys.key((*address, "init")))
        return trainer.start(weights, float(schedule.learning_rate), float(schedule.steps))

    digest, state = fit.fit(
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
    study.remember(kind, digest, step.ema_variables(state))
    return {"digests": {name: digest}, "images_per_second": progress.rate}


def _previous(gen: GenerationRun, kind: str) -> step.Variables | None:
    """What training starts from: the network of the generation before, where the config says so."""
    section = getattr(gen.study.config, kind)
    if not gen.number or section.later.start == "scratch":
        return None
    return gen.trained(gen.number - 1, kind)


def diffusion_phase(gen: GenerationRun) -> Entry:
    """Trains the generator on the pool."""
    if not gen.generates:
        return SKIPPED
    return _training(gen, "diffusion", "diffusion", gen.pool, _previous(gen, "diffusion"))


def _conditions(gen: GenerationRun) -> tuple[np.ndarray, np.ndarray]:
    """Label and group asked of each image drawn in this generation."""
    data = gen.study.data
    return requests.requested_labels(
        gen.study.config.sample,
        (*gen.address, "sample"),
        gen.pool,
        data.train,
        data.members,
    )


def sample_phase(gen: GenerationRun) -> Entry:
    """Draws images in chunks; a chunk on disk is not drawn again."""
    if not gen.generates:
        return SKIPPED
    section = gen.study.config.sample
    chunk = section.batch_per_device * parallel.device_count()
    label, group = _conditions(gen)
    params = gen.trained(gen.number, "diffusion")["params"]
    key = parallel.replicate(keys.key((*gen.address, "sample", "noise")))
    firsts = range(0, section.count, chunk)
    paths = [gen.folder / "samples.part" / f"{first:08d}.npz" for first in firsts]
    progress = gen.progress("sample")
    there = multihost.broadcast(np.array([path.exists() for path in paths]))
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
            writing = disk.submit(
                store.write_npz, path, {"id": ids[:kept], "pixels": pixels[:kept]}
            )
            progress.advance(done)
            if gen.study.stop():
                writing.result()
                raise fit.Preempted(f"{progress.where}, image {first + kept}")
        if writing:
            writing.result()
    progress.end()
    multihost.barrier()
    pixels = _join_chunks(gen)
    return {
        "digests": {"pixels": store.digest_arrays({"pixels": pixels})},
        "images_per_second": progress.rate,
    }


def _join_chunks(gen: GenerationRun) -> np.ndarray:
    """uint8[count,H,W,3]: the chunks joined."""
    paths = sorted((gen.folder / "samples.part").glob("*.npz"))
    return np.concatenate([store.read_npz(path)["pixels"] for path in paths])


def classifier_phase(gen: GenerationRun) -> Entry:
    """Trains the classifier on the pool."""
    return _training(gen, "classifier", "classifier", gen.pool, _previous(gen, "classifier"))


def label_phase(gen: GenerationRun) -> Entry:
    """Labels and groups the drawn images and writes samples.npz."""
    if not gen.generates:
        return SKIPPED
    config, data = gen.study.config, gen.study.data
    pixels = _join_chunks(gen)
    if store.digest_arrays({"pixels": pixels}) != gen.digest(gen.number, "pixels"):
        raise RunError(
            f"{gen.folder / 'samples.part'}: damaged: its digest is not the recorded one"
        )
    condition, asked_group = _conditions(gen)
    annotators = {"previous": gen.number, "frozen": 0}
    logits = {
        name: gen.study.networks.predict["classifier"](
            gen.trained(generation, "classifier"), pixels
        )
        for name, generation in annotators.items()
        if config.loop.label_source == name
    }
    label = assign_labels(config.loop, condition, logits)
    annotated = "annotator" in gen.study.networks.trainers
    group_logits = _group_logits(gen, pixels) if annotated else None
    digest = store.write_npz(
        gen.folder / "samples.npz",
        {
            "pixels": pixels,
            "label": label,
            "group": assign_groups(config.loop, asked_group, label, pixels, group_logits, data),
            "id": np.arange(len(pixels), dtype=np.uint32),
            "condition": condition,
        },
    )
    return {"digests": {"samples.npz": digest}}


def generated_classifier_phase(gen: GenerationRun) -> Entry:
    """Trains a classifier on this generation's images alone, for the score of arXiv 1905.10887."""
    wanted = gen.study.config.measure.generated_only
    if wanted == "never" or (wanted == "first" and gen.number) or not gen.generates:
        return SKIPPED
    return _training(gen, "generated_classifier", "classifier", gen.samples(gen.number), None)
