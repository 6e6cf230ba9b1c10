"""The phase `measure`: numbers of a generation's classifier and of its generated images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from selfloop_jax.config import Config
from selfloop_jax.data import pool_rules
from selfloop_jax.data.colorize import read_group
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.images import Images
from selfloop_jax.loop.context import GenerationRun, repeats
from selfloop_jax.loop.phase import Phase, Result, each, merge
from selfloop_jax.measure import (
    composition,
    distances,
    fairness,
    fidelity,
    foreground,
    memorization,
)
from selfloop_jax.measure.features import FeatureNetwork
from selfloop_jax.measure.foreground import Predict
from selfloop_jax.measure.intervals import share_interval
from selfloop_jax.measure.metrics import Number
from selfloop_jax.measure.test_set import TestSet
from selfloop_jax.runtime import rng, store

NEIGHBOURS_PER_CLASS = 3  # generated images shown in the report next to their nearest real image
FIRST = "classifier of generation 0"  # the features of a run that names no other network

Part = dict[str, Any]  # of a record: `metrics` {key of METRICS: Number}, `tables` and more


@dataclass(frozen=True)
class Inputs:
    """What is measured, and the networks that measure it, as functions of pixels.

    classify: this generation's classifier. more_classify: further ones, trained alike.
    first_classify: that of generation 0. features: that of generation 0, or the network of
    `measure.features`. generated_classify: the one trained on generated images alone, or None.
    samples: the generated images, or None in a control. confusion: errors of the group annotator,
    or None without one. first_accuracy: of generation 0; None while that is being measured.
    """

    config: Config
    data: Dataset
    generation: int
    key_path: rng.KeyPath
    classify: Predict
    more_classify: tuple[Predict, ...]
    first_classify: Predict
    features: FeatureNetwork
    generated_classify: Predict | None
    samples: Images | None
    confusion: list[np.ndarray] | None
    first_accuracy: float | None

    @property
    def held_out(self) -> Images:
        """The split that the classifier is measured on."""
        splits = {"test": self.data.test, "validation": self.data.validation}
        return splits[self.config.measure.split]


@dataclass(frozen=True)
class Outputs:
    """The phase's part of the record, and the arrays of its files."""

    record: dict[str, Any]
    predictions: dict[str, np.ndarray]
    neighbours: dict[str, np.ndarray] | None


def _read(run: GenerationRun) -> Inputs:
    context = run.context
    networks = context.networks

    def network(generation: int, phase: str, predict: Callable) -> Predict:
        weights = run.weights(generation, phase)
        return lambda pixels: predict(weights, pixels)

    classifier = networks.predict["classifier"]
    # A phase that did not apply has no digest.
    scored = bool(run.digests.get("generated_classifier"))
    features = context.feature_network
    if features is None:
        # Of generation 0 for every generation: it has seen real images alone, and one network makes
        # the generations comparable.
        extract = network(0, "classifier", networks.features)
        features = FeatureNetwork(FIRST, extract, digest=run.digest(0, "classifier"))
    return Inputs(
        config=context.config,
        data=context.data,
        generation=run.number,
        key_path=run.key_path,
        classify=network(run.number, "classifier", classifier),
        more_classify=tuple(
            network(run.number, name, classifier) for name in repeats(context.config)
        ),
        first_classify=network(0, "classifier", classifier),
        features=features,
        generated_classify=(
            network(run.number, "generated_classifier", classifier) if scored else None
        ),
        samples=run.samples(run.number) if run.trains_generator else None,
        confusion=_confusion(run),
        first_accuracy=_first_record(run)["metrics"]["accuracy"]["value"] if run.number else None,
    )


def _first_record(run: GenerationRun) -> Mapping[str, Any]:
    return run.record_of(0)


def _confusion(run: GenerationRun) -> list[np.ndarray] | None:
    """The frozen annotator's confusion matrix of each class on held-out real images.

    None where there is no annotator, or nothing for it to annotate.
    """
    if "annotator" not in run.context.networks.trainers or not run.trains_generator:
        return None
    # The record of generation 0 is written after this phase, so its own result serves there.
    first = _first_record(run) if run.number else run.results["annotator"]["record"]
    return first["annotator"]["confusion"]


def measure(inputs: Inputs) -> Outputs:
    """Predicts the held-out images, and measures classifier and generated images."""
    held_out = inputs.held_out
    logits = inputs.classify(held_out.pixels)
    predictions = {
        "id": held_out.id,
        "label": held_out.label,
        "group": held_out.group,
        "logits": logits,
    }
    if held_out.source_id is not None:
        predictions["source_id"] = held_out.source_id
    section = inputs.config.measure
    parts = [
        {"split": section.split, "level": section.level, "trainings": section.trainings},
        _fairness(inputs, logits.argmax(axis=1)),
    ]
    neighbours = None
    if inputs.samples is not None:
        accuracy = parts[1]["metrics"]["accuracy"]["value"]
        # Extracted once: fidelity and neighbours both read them.
        features = _extract(inputs, inputs.samples)
        parts.append(_composition(inputs, inputs.samples))
        parts.append(_content(inputs, inputs.samples, accuracy))
        parts.append(_fidelity(inputs, features, inputs.samples))
        neighbours = _neighbours(inputs, inputs.samples, features)
    # The probe may be the test set itself, which early looks on validation leave alone.
    if section.split == "test" and inputs.data.probe is not None:
        parts.append(_foreground(inputs, inputs.data.probe))
    return Outputs(merge(parts), predictions, neighbours)


def _fairness(inputs: Inputs, pred: np.ndarray) -> Part:
    """Fairness metrics with intervals, null bands, p-values; recall of each subgroup."""
    held_out = inputs.held_out
    data = inputs.data
    section = inputs.config.measure
    test_set = TestSet(
        held_out.label,
        pred,
        held_out.group,
        len(data.classes),
        len(data.groups),
        held_out.source_id,
        data.aligned_group,
        data.nested,
    )
    more = []
    for classify in inputs.more_classify:
        more.append(replace(test_set, pred=classify(held_out.pixels).argmax(axis=1)))
    key_path = (*inputs.key_path, "measure", "uncertainty")
    return {
        "metrics": fairness.numbers(test_set, key_path, section.replicates, section.level, more),
        "tables": {"recall": fairness.recall(test_set, section.level, more)},
    }


def _composition(inputs: Inputs, samples: Images) -> Part:
    """Shares of classes and groups among the generated images, against those of real images."""
    data = inputs.data
    level = inputs.config.measure.level
    shape = (len(data.classes), len(data.groups))
    counts = samples.counts(*shape)
    real = data.train.counts(*shape)
    metrics: dict[str, Number] = {
        **composition.summary(counts, real, data.groups_of_class, data.aligned_group, level),
        "generated_count": {"value": len(samples)},
        "generated_unknown_group": {"value": int((samples.group < 0).sum())},
    }
    tables: dict[str, Any] = {"generated_counts": counts}
    if inputs.config.diffusion.condition_on == "label":
        # Groups that were requested are no choice of the generator: chance had no say in them.
        key_path = (*inputs.key_path, "measure", "composition")
        replicates = inputs.config.measure.replicates
        null = composition.null(
            real, counts, data.groups_of_class, key_path, replicates, inputs.confusion
        )
        for key, chance in null.items():
            metrics[key] = metrics[key] | chance
    if inputs.confusion is not None:
        table, aligned_share = composition.corrected_shares(
            counts, inputs.confusion, data.groups_of_class, data.aligned_group, level
        )
        metrics["bias_aligned_share_corrected"] = aligned_share
        tables["corrected_shares"] = table
    if data.colours and inputs.config.loop.group_source == "annotator":
        # The painted colour is the truth that the annotator is checked against.
        colour = read_group(samples.pixels, data.colours)
        metrics["annotator_agreement"] = {"value": float((samples.group == colour).mean())}
        by_colour = replace(samples, group=colour).counts(*shape)
        aligned_classes = np.flatnonzero(data.aligned_group >= 0)
        own = by_colour[aligned_classes, data.aligned_group[aligned_classes]].sum()
        total = by_colour[aligned_classes].sum()
        metrics["bias_aligned_share_by_colour"] = {"value": own / total if total else np.nan}
    return {"metrics": metrics, "tables": tables}


def _content(inputs: Inputs, samples: Images, accuracy: float) -> Part:
    """Agreement of a classifier with the requested labels, and the CAS (arXiv 1905.10887)."""
    # Generation 0's classifier, for every generation: it was trained on real images alone.
    agrees = inputs.first_classify(samples.pixels).argmax(axis=1) == samples.requested_label
    level = inputs.config.measure.level
    metrics = {"classifier_agreement": _share(agrees, level)}
    if inputs.generated_classify is None:
        return {"metrics": metrics}
    held_out = inputs.held_out
    correct = inputs.generated_classify(held_out.pixels).argmax(axis=1) == held_out.label
    cas = _share(correct, level, held_out.source_id)
    # Over the accuracy after training on real images alone: that of generation 0.
    real = accuracy if inputs.first_accuracy is None else inputs.first_accuracy
    metrics["cas"] = cas
    metrics["cas_ratio"] = {"value": cas["value"] / real if real else np.nan}
    return {"metrics": metrics}


def _share(hit: np.ndarray, level: float, source_id: np.ndarray | None = None) -> Number:
    """A share of bool[N] hits with its interval."""
    low, high = share_interval(hit, source_id, level)
    return {"value": float(hit.mean()), "low": low, "high": high}


@dataclass(frozen=True)
class _Features:
    """Features of generated, training and held-out images, and the images themselves."""

    generated: fidelity.FeatureSet
    train: fidelity.FeatureSet
    held_out: fidelity.FeatureSet
    reserve: Images


def _extract(inputs: Inputs, samples: Images) -> _Features:
    """Held-out images are those of the reserve, as far as no pool has used them."""
    config = inputs.config
    data = inputs.data
    # What a pool has used was trained on, so it is held out no more.
    reserve = pool_rules.unused_reserve(
        config.pool, (config.seed, "pool"), data.reserve, inputs.generation
    )
    generated, train, held_out = (
        fidelity.FeatureSet(inputs.features.extract(images.pixels), images.label, images.group)
        for images in (samples, data.train, reserve)
    )
    return _Features(generated, train, held_out, reserve)


def _fidelity(inputs: Inputs, features: _Features, samples: Images) -> Part:
    """Distance of generated from held-out real images, which the features have not seen either.

    One half of these is the reference, the other half gives the baselines. Without any, the
    training images are the reference.
    """
    dimension = features.train.features.shape[1]
    # Sets of later generations have other sizes, and nothing may be compiled then.
    fidelity.compile_tiles(dimension)
    distances.compile_nearest(dimension)
    distances.compile_nearest(math.prod(samples.pixels.shape[1:]))
    # The same halves in every generation, so that generations can be compared.
    reference, baseline = features.held_out.halves((inputs.config.seed, "measure", "halves"))
    notes = []
    if not len(reference):
        reference = features.train
        notes.append("fidelity: no image is held out; the reference is what the features learned")
    report = fidelity.report(
        features.generated,
        reference,
        baseline,
        len(inputs.data.classes),
        len(inputs.data.groups),
        (*inputs.key_path, "measure", "fidelity"),
    )
    copies, more = _copies(inputs, features, samples)
    return {
        "metrics": report.metrics | copies,
        "tables": {"fidelity_by_class": report.by_class, "fidelity_by_group": report.by_group},
        "fidelity_features": {
            "network": inputs.features.name,
            "digest": inputs.features.digest,
            "dimension": dimension,
        },
        "notes": notes + report.notes + more,
    }


def _copies(
    inputs: Inputs, features: _Features, samples: Images
) -> tuple[dict[str, Number], list[str]]:
    """Whether generated images copy training images, in features and in pixels."""
    key_path = (*inputs.key_path, "measure", "memorization")
    level = inputs.config.measure.level
    metrics, notes = memorization.report(
        features.generated.features,
        features.train.features,
        features.held_out.features,
        key_path,
        level,
    )
    # Features of a classifier forget what tells two images of a class apart; pixels do not.
    generated, train, held_out = (
        images.pixels.reshape(len(images), math.prod(images.pixels.shape[1:])).astype(np.float32)
        for images in (samples, inputs.data.train, features.reserve)
    )
    in_pixels, _ = memorization.report(generated, train, held_out, key_path, level)
    metrics["copied_share_pixels"] = in_pixels["copied_share"]
    return metrics, notes


def _neighbours(inputs: Inputs, samples: Images, features: _Features) -> dict[str, np.ndarray]:
    """A few generated images per class, each with its nearest real training image."""
    first = []
    for c in range(len(inputs.data.classes)):
        first.append(np.flatnonzero(samples.label == c)[:NEIGHBOURS_PER_CLASS])
    shown = np.sort(np.concatenate(first))
    index, distance = distances.nearest(features.generated.features[shown], features.train.features)
    train = inputs.data.train
    return {
        "id": samples.id[shown],
        "label": samples.label[shown],
        "pixels": samples.pixels[shown],
        "neighbour": train.pixels[index],
        "neighbour_id": train.id[index],
        "distance": distance,
    }


def _foreground(inputs: Inputs, probe: Images) -> Part:
    """Reliance of the classifier on the object, by images with masks of their objects."""
    # The same noise in every generation, so that generations can be compared.
    key_path = (inputs.config.seed, "spurious")
    details = foreground.evaluate(inputs.classify, probe, len(inputs.data.classes), key_path)
    metrics = {
        f"ablation_{kind}": {"value": accuracy["class_mean"]}
        for kind, accuracy in details["ablations"].items()
    }
    return {"metrics": metrics, "foreground": details}


def _write(run: GenerationRun, outputs: Outputs) -> Result:
    digests = {}
    files = {"predictions": outputs.predictions, "neighbours": outputs.neighbours}
    for name, arrays in files.items():
        if arrays is not None:
            digests[f"{name}.npz"] = store.write_npz(run.folder / f"{name}.npz", arrays)
    return Result(digests=digests, record=outputs.record)


MEASURE = Phase(name="measure", read=_read, compute=each(measure), write=_write)
