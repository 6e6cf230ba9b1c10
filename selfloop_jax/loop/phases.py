"""The phases of a generation, each a value that reads, computes and writes.

`studies/self_consuming.py` states their order. Inputs are read from disk and verified, whether or
not the phase before ran in this process; only the weights trained last stay on the devices, under
the digest that they have on disk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.curate import label as labelling
from selfloop_jax.data.images import Images
from selfloop_jax.errors import RunError
from selfloop_jax.loop.context import (
    GenerationRun,
    network_of,
    pool_digest,
    repeats,
    trains_annotator,
)
from selfloop_jax.loop.phase import Phase, Result, each, halve
from selfloop_jax.loop.samples import REQUESTED, path_of
from selfloop_jax.runtime import log, parallel, store
from selfloop_jax.sampling import requests, sampler
from selfloop_jax.sampling.parts import Parts
from selfloop_jax.training import fit, step

IN_TENSORBOARD = 64  # generated images shown there per generation

# ------------------------------------------------------------------------------------------------
# Training: four phases that differ in the network, in the images and in where they start.
# ------------------------------------------------------------------------------------------------


def training_job(
    run: GenerationRun, phase: str, images: Images, weights: step.Variables | None
) -> fit.Job:
    """The job that trains the network of `phase` on images, from weights or from scratch."""
    context = run.context
    network = network_of(phase)
    schedule = configs.training_section(getattr(context.config, network), run.number)
    return fit.Job(
        trainer=context.networks.trainers[network],
        columns=fit.training_columns(images),
        weights=weights,
        steps=schedule.steps,
        learning_rate=schedule.learning_rate,
        key_path=(*run.key_path, phase),
        capacity=context.capacity,
        placement=context.config.data.placement,
        checkpoints=run.artifacts(run.number).checkpoints(phase),
        progress=run.progress(phase),
        stop=context.stop,
    )


def keep_trained(run: GenerationRun, phase: str, fitted: fit.Fitted) -> Result:
    """Notes a trained network, and keeps its weights on the devices for the phases that follow."""
    variables = step.ema_variables(fitted.state)
    run.context.cache_weights(network_of(phase), fitted.digest, variables)
    return Result(digests={phase: fitted.digest}, rates={phase: fitted.images_per_second})


def _previous(run: GenerationRun, phase: str) -> step.Variables | None:
    """What fine-tuning starts from: the network of the generation before; None: from scratch."""
    section = getattr(run.context.config, network_of(phase))
    if not run.number or section.later.start == "scratch":
        return None
    return run.weights(run.number - 1, phase)


def _training_phase(
    name: str,
    images: Callable[[GenerationRun], Images],
    start: Callable[[GenerationRun], step.Variables | None],
    applies: Callable[[GenerationRun], bool],
    memory_hint: Callable[[GenerationRun], str],
) -> Phase:
    """The phase that trains the network `name` on `images(run)`, from `start(run)`."""
    return Phase(
        name=name,
        applies=applies,
        read=lambda run: training_job(run, name, images(run), start(run)),
        compute=fit.fit,
        write=lambda run, fitted: keep_trained(run, name, fitted),
        memory_hint=memory_hint,
    )


def _measures_generated_only(run: GenerationRun) -> bool:
    """Whether this generation trains a classifier on its generated images alone."""
    wanted = run.context.config.measure.generated_only
    first_only = wanted == "first" and run.number > 0
    return wanted != "never" and not first_only and run.trains_generator


def _more_microbatches(run: GenerationRun) -> str:
    """The memory hint of the generator, whose batch stays as it is."""
    return f"set diffusion.microbatches = {2 * run.context.config.diffusion.microbatches}"


DIFFUSION = _training_phase(
    "diffusion",
    images=lambda run: run.pool,
    start=lambda run: _previous(run, "diffusion"),
    applies=lambda run: run.trains_generator,
    memory_hint=_more_microbatches,
)
CLASSIFIER = _training_phase(
    "classifier",
    images=lambda run: run.pool,
    start=lambda run: _previous(run, "classifier"),
    applies=lambda run: True,
    memory_hint=halve("classifier.batch"),
)


def _read_repeats(run: GenerationRun) -> list[fit.Job]:
    """Trainings that differ from the first one in their random numbers alone."""
    names = repeats(run.context.config)
    return [training_job(run, name, run.pool, _previous(run, name)) for name in names]


def _write_repeats(run: GenerationRun, fitted: Sequence[fit.Fitted]) -> Result:
    named = dict(zip(repeats(run.context.config), fitted, strict=True))
    for name, one in named.items():
        keep_trained(run, name, one)
    return Result(
        digests={name: one.digest for name, one in named.items()},
        rates={name: one.images_per_second for name, one in named.items()},
    )


# One training scatters: how much a number depends on it is seen, and averaged out, by several.
CLASSIFIER_REPEATS = Phase(
    name="classifier_repeats",
    applies=lambda run: bool(repeats(run.context.config)),
    read=_read_repeats,
    compute=each(fit.fit),
    write=_write_repeats,
    memory_hint=halve("classifier.batch"),
)
# For the classification accuracy score (CAS) of arXiv 1905.10887.
GENERATED_CLASSIFIER = _training_phase(
    "generated_classifier",
    images=lambda run: run.samples(run.number),
    start=lambda run: None,
    applies=_measures_generated_only,
    memory_hint=halve("classifier.batch"),
)

# ------------------------------------------------------------------------------------------------
# The group annotator: trained once, in generation 0, and frozen.
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Annotating:
    """Training of the annotator, and the held-out images on which its errors are counted."""

    job: fit.Job
    held_out: Images
    predict: Callable[[step.Variables, np.ndarray], np.ndarray]
    groups_of_class: np.ndarray


def _trains_annotator(run: GenerationRun) -> bool:
    context = run.context
    return trains_annotator(context.config, len(context.data.groups), run.number)


def _read_annotating(run: GenerationRun) -> _Annotating:
    """It learns from the images before subsampling: it is to measure the bias, not to have it."""
    data = run.context.data
    known = data.train_unbiased.take(data.train_unbiased.group >= 0)
    # The annotator is a classifier whose classes are the groups.
    job = training_job(run, "annotator", replace(known, label=known.group), None)
    predict = run.context.networks.predict["annotator"]
    return _Annotating(job, data.validation, predict, data.groups_of_class)


def _annotate(
    inputs: Sequence[_Annotating],
) -> list[tuple[fit.Fitted, list[np.ndarray]]]:
    """The trained annotators, each with its confusion matrices on held-out images."""
    outputs = []
    fitted = fit.fit([one.job for one in inputs])
    for one, network in zip(inputs, fitted, strict=True):
        # On validation images: the annotator never saw them, and the test set stays unread.
        held_out = one.held_out
        logits = one.predict(step.ema_variables(network.state), held_out.pixels)
        groups = labelling.most_likely_group(logits, held_out.label, one.groups_of_class)
        confusion = labelling.confusion_matrices(
            held_out.label, held_out.group, groups, one.groups_of_class
        )
        outputs.append((network, confusion))
    return outputs


def _write_annotator(run: GenerationRun, outputs: tuple[fit.Fitted, list[np.ndarray]]) -> Result:
    fitted, confusion = outputs
    trained = keep_trained(run, "annotator", fitted)
    record = {"annotator": {"split": "validation", "confusion": confusion}}
    return Result(digests=trained.digests, record=record, rates=trained.rates)


ANNOTATOR = Phase(
    name="annotator",
    applies=_trains_annotator,
    read=_read_annotating,
    compute=_annotate,
    write=_write_annotator,
    memory_hint=halve("annotator.batch"),
)

# ------------------------------------------------------------------------------------------------
# The pool: not stored, because it can be rebuilt from its inputs.
# ------------------------------------------------------------------------------------------------


def _write_pool(run: GenerationRun, images: Images) -> Result:
    data = run.context.data
    origins, counts = np.unique(images.origin, return_counts=True)
    # An origin of -1 marks real images.
    by_origin = {int(g): int(n) for g, n in zip(origins, counts, strict=True)}
    real = by_origin.pop(-1, 0)
    shape = (len(data.classes), len(data.groups))
    pool = {
        "size": len(images),
        "real": real,
        "generated": by_origin,
        "counts": images.counts(*shape),
        "unknown_group": int((images.group < 0).sum()),
        # What forecasts and the drift null start from: a rule may take a part of either.
        "train_counts": data.train.counts(*shape),
        "reserve_counts": data.reserve.counts(*shape),
    }
    if not by_origin:
        # Several images may be one digit in several colours: how many digits are there?
        source = images.id if images.source_id is None else images.source_id
        pool["distinct_sources"] = len(np.unique(source))
    return Result(digests={"pool": pool_digest(images)}, record={"pool": pool})


# `read` builds the pool, so `compute` passes it on.
POOL = Phase(name="pool", read=lambda run: run.pool, compute=list, write=_write_pool)

# ------------------------------------------------------------------------------------------------
# Sampling and labelling.
# ------------------------------------------------------------------------------------------------


def _read_sampling(run: GenerationRun) -> sampler.Job:
    context = run.context
    section = context.config.sample
    data = context.data
    label, group = requests.requested_labels(
        section, (*run.key_path, "sample"), run.pool, data.train, data.groups_of_class
    )
    return sampler.Job(
        sampler=context.networks.sampler,
        params=run.weights(run.number, "diffusion")["params"],
        label=label,
        group=group,
        chunk=section.batch_per_device * parallel.device_count(),
        key_path=(*run.key_path, "sample", "noise"),
        parts=Parts(run.folder / "samples.part"),
        progress=run.progress("sample"),
        stop=context.stop,
    )


def _sample(jobs: Sequence[sampler.Job]) -> list[tuple[sampler.Job, sampler.Sampled]]:
    return list(zip(jobs, sampler.sample(jobs), strict=True))


def _write_samples(run: GenerationRun, outputs: tuple[sampler.Job, sampler.Sampled]) -> Result:
    """Writes samples.npz without labels: they need the classifier of this generation."""
    job, sampled = outputs
    requested = {
        "id": np.arange(len(sampled.pixels), dtype=np.uint32),
        "requested_label": job.label,
        "requested_group": job.group,
    }
    store.write_npz(path_of(run.workdir, run.number), {"pixels": sampled.pixels, **requested})
    # The chunks go once samples.npz is complete.
    job.parts.remove()
    if run.context.tensorboard:
        run.context.tensorboard.images("samples", sampled.pixels[:IN_TENSORBOARD], run.number)
    return Result(
        digests={
            "pixels": store.digest_arrays({"pixels": sampled.pixels}),
            "requested": store.digest_arrays(requested),
        },
        record=_never_shown(run, job),
        rates={"sample": sampled.images_per_second},
    )


def _never_shown(run: GenerationRun, job: sampler.Job) -> store.Json:
    """What the record says of images that were requested in subgroups that the pool lacks.

    The generator learned its class and its group, from other images, but never both together.
    """
    data = run.context.data
    if run.context.config.diffusion.condition_on != "label_group":
        return {}
    seen = run.pool.counts(len(data.classes), len(data.groups)) > 0
    known = job.group >= 0
    count = int((~seen[job.label[known], job.group[known]]).sum())
    if not count:
        return {}
    log.say(
        f"generation {run.number}, sample: {count} of {len(job.label)} images were requested in "
        "subgroups without a training image"
    )
    return {"samples": {"requested_without_training_image": count}}


SAMPLE = Phase(
    name="sample",
    applies=lambda run: run.trains_generator,
    read=_read_sampling,
    compute=_sample,
    write=_write_samples,
    memory_hint=halve("sample.batch_per_device"),
)


def _read_labelling(run: GenerationRun) -> labelling.Job:
    """The images of this generation, and the networks that say what is on them."""
    context = run.context
    arrays = _requested_samples(run)
    # `requested` needs no classifier: None.
    generation_of = {"previous": run.number, "frozen": 0}.get(context.config.loop.label_source)
    annotated = "annotator" in context.networks.trainers
    return labelling.Job(
        section=context.config.loop,
        data=context.data,
        samples=arrays,
        classify=_predictor(run, "classifier", generation_of),
        annotate=_predictor(run, "annotator", 0 if annotated else None),
    )


def _predictor(
    run: GenerationRun, network: str, generation: int | None
) -> Callable[[np.ndarray], np.ndarray] | None:
    """pixels -> logits of a network of some generation; None without a generation."""
    if generation is None:
        return None
    weights = run.weights(generation, network)
    predict = run.context.networks.predict[network]
    return lambda pixels: predict(weights, pixels)


def _requested_samples(run: GenerationRun) -> dict[str, np.ndarray]:
    """What `sample` wrote, verified by content: a killed `label` may have added its columns."""
    path = path_of(run.workdir, run.number)
    arrays = store.read_npz(path)
    contents = {"pixels": ("pixels",), "requested": REQUESTED}
    for name, columns in contents.items():
        found = {column: arrays[column] for column in columns if column in arrays}
        if store.digest_arrays(found) != run.digest(run.number, name):
            raise RunError(f"{path}: damaged: the digest of its {name} is not the recorded one")
    # Without the columns that a killed `label` may have added: they are assigned again.
    return {column: arrays[column] for column in ("pixels", *REQUESTED)}


def _write_labels(run: GenerationRun, arrays: dict[str, np.ndarray]) -> Result:
    digest = store.write_npz(path_of(run.workdir, run.number), arrays)
    return Result(digests={"samples.npz": digest})


LABEL = Phase(
    name="label",
    applies=lambda run: run.trains_generator,
    read=_read_labelling,
    compute=each(labelling.label),
    write=_write_labels,
)
