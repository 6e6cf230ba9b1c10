"""The phase `measure`: what a record says of a generation's classifier and of its images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from selfloop_jax.config import Config
from selfloop_jax.data.colorize import read_group
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.images import Images
from selfloop_jax.loop import pool_rules
from selfloop_jax.loop.context import GenerationRun
from selfloop_jax.loop.phase import Phase, Result, each
from selfloop_jax.measure import composition, fairness, fidelity, foreground
from selfloop_jax.measure.intervals import share_interval
from selfloop_jax.measure.null import summary
from selfloop_jax.runtime import rng, store

NEIGHBOURS_PER_CLASS = 3  # generated images shown in the report next to their nearest real image
NEIGHBOURS = 5  # k of precision, recall, density and coverage (Kynkaanniemi et al. 2019)
Predict = Callable[[np.ndarray], np.ndarray]  # pixels uint8[N,H,W,3] -> float32[N,...]
Number = dict[str, Any]  # value, and perhaps low, high, null, p, baseline


@dataclass(frozen=True)
class Inputs:
    """What is measured, and the networks that are asked, as functions of pixels.

    classify: this generation's classifier. first_classify and features: that of generation 0.
    generated_classify: the one trained on generated images alone, or None. samples: the generated
    images, or None in a control. confusion: errors of the group annotator, or None without one.
    first_accuracy: of generation 0; None while that is being measured.
    """

    config: Config
    data: Dataset
    generation: int
    key_path: rng.KeyPath
    classify: Predict
    first_classify: Predict
    features: Predict
    features_digest: str
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

    def asked(generation: int, phase: str, predict: Callable) -> Predict:
        weights = run.weights(generation, phase)
        return lambda pixels: predict(weights, pixels)

    classifier = networks.predict["classifier"]
    scored = bool(run.digests.get("generated_classifier"))
    return Inputs(
        config=context.config,
        data=context.data,
        generation=run.number,
        key_path=run.key_path,
        classify=asked(run.number, "classifier", classifier),
        first_classify=asked(0, "classifier", classifier),
        features=asked(0, "classifier", networks.features),
        features_digest=run.digest(0, "classifier"),
        generated_classify=(
            asked(run.number, "generated_classifier", classifier) if scored else None
        ),
        samples=run.samples(run.number) if run.trains_generator else None,
        confusion=_confusion(run),
        first_accuracy=_first_record(run)["metrics"]["accuracy"]["value"] if run.number else None,
    )


def _first_record(run: GenerationRun) -> Mapping[str, Any]:
    return run.record_of(0)


def _confusion(run: GenerationRun) -> list[np.ndarray] | None:
    """Per class how the frozen annotator reads real held-out images; None where it labels nothing."""
    if "annotator" not in run.context.networks.trainers or not run.trains_generator:
        return None
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
    metrics, tables = _fairness(inputs, logits.argmax(axis=1))
    record: dict[str, Any] = {"split": inputs.config.measure.split}
    neighbours = None
    if inputs.samples is not None:
        accuracy = metrics["accuracy"]["value"]
        found, more = _composition(inputs, inputs.samples)
        metrics |= found | _content(inputs, inputs.samples, accuracy)
        tables |= more
        found, more, neighbours, facts = _fidelity(inputs, inputs.samples)
        metrics |= found
        tables |= more
        record |= facts
    if inputs.config.measure.split == "test" and inputs.data.probe is not None:
        details = _foreground(inputs)
        record["foreground"] = details
        for kind, accuracies in details["ablations"].items():
            metrics[f"ablation_{kind}"] = {"value": accuracies["class_mean"]}
    record |= {"metrics": metrics, "tables": tables}
    return Outputs(record, predictions, neighbours)


def _fairness(inputs: Inputs, predicted: np.ndarray) -> tuple[dict[str, Number], dict[str, Any]]:
    """Fairness numbers of the classifier, each with interval and null; and the table of recalls."""
    held_out = inputs.held_out
    data = inputs.data
    section = inputs.config.measure
    columns = (held_out.label, predicted, held_out.group)
    sizes = (len(data.classes), len(data.groups))
    values = {
        **fairness.summary(*columns, *sizes, data.nested),
        "aligned_contrast": fairness.aligned_contrast(*columns, data.aligned_group, *sizes),
    }
    values["undefined_subgroups"] = values.pop("undefined_cells")
    found = summary(
        *columns,
        held_out.source_id,
        *sizes,
        data.aligned_group,
        data.nested,
        (*inputs.key_path, "measure", "uncertainty"),
        section.replicates,
        section.level,
    )
    metrics = {}
    for key, value in values.items():
        beside = {name: x for name, x in found["metrics"].get(key, {}).items() if x is not None}
        metrics[key] = {"value": value, **beside}
    recall = fairness.recalls(*columns, *sizes)[0]
    return metrics, {"recall": {"value": recall, **found["recall"]}}


def _composition(inputs: Inputs, samples: Images) -> tuple[dict[str, Number], dict[str, Any]]:
    """Shares of classes and groups among the generated images, against those of real images."""
    data = inputs.data
    real = data.train.joint(len(data.classes), len(data.groups))
    found = composition.summary(
        samples.label, samples.group, real, data.aligned_group, data.members
    )
    counts = found["joint"]
    low, high = composition.aligned_interval(counts, data.aligned_group)
    metrics = {
        "generated_count": {"value": found["count"]},
        "generated_unknown_group": {"value": found["unknown_group"]},
        "kl_to_real": {"value": found["kl_to_real"]},
        "total_variation_to_real": {"value": found["total_variation_to_real"]},
        "subgroup_coverage": {"value": composition.cell_coverage(counts, real, data.members)},
        "bias_aligned_share": {"value": found["bias_aligned_share"], "low": low, "high": high},
    }
    if inputs.config.diffusion.condition_on == "label":
        # Groups that were requested are no choice of the generator: chance had no say in them.
        key_path = (*inputs.key_path, "measure", "composition")
        null = composition.null(
            real,
            counts,
            data.members,
            key_path,
            inputs.config.measure.replicates,
            inputs.confusion,
        )
        tested = {"subgroup_coverage": "cell_coverage"}
        for key in ("kl_to_real", "total_variation_to_real", "subgroup_coverage"):
            name = tested.get(key, key)
            metrics[key] |= {"null": null[name], "p": null[f"{name}_p"]}
    tables: dict[str, Any] = {"generated_counts": counts}
    if inputs.confusion is not None:
        corrected = composition.corrected_shares(
            counts, inputs.confusion, data.members, data.aligned_group
        )
        aligned = corrected.pop("aligned")
        metrics["bias_aligned_share_corrected"] = {
            "value": aligned["share"],
            "low": aligned["low"],
            "high": aligned["high"],
        }
        tables["corrected_shares"] = corrected
    if data.colours and inputs.config.loop.group_source == "annotator":
        colour = read_group(samples.pixels, data.colours)
        metrics["annotator_agreement"] = {"value": float((samples.group == colour).mean())}
        by_colour = replace(samples, group=colour).joint(*counts.shape)
        aligned_classes = np.flatnonzero(data.aligned_group >= 0)
        own = by_colour[aligned_classes, data.aligned_group[aligned_classes]].sum()
        total = by_colour[aligned_classes].sum()
        metrics["bias_aligned_share_by_colour"] = {"value": own / total if total else np.nan}
    return metrics, tables


def _content(inputs: Inputs, samples: Images, accuracy: float) -> dict[str, Number]:
    """How far classifiers agree with the requested labels, and the CAS (arXiv 1905.10887)."""
    agrees = inputs.first_classify(samples.pixels).argmax(axis=1) == samples.condition
    metrics = {"classifier_agreement": _share(agrees)}
    if inputs.generated_classify is None:
        return metrics
    held_out = inputs.held_out
    correct = inputs.generated_classify(held_out.pixels).argmax(axis=1) == held_out.label
    cas = _share(correct, held_out.source_id)
    # Over the accuracy after training on real images alone: that of generation 0.
    real = accuracy if inputs.first_accuracy is None else inputs.first_accuracy
    metrics["cas"] = cas
    metrics["cas_ratio"] = {"value": cas["value"] / real if real else None}
    return metrics


def _share(hit: np.ndarray, source_id: np.ndarray | None = None) -> Number:
    """A share of bool[N] hits with its interval."""
    low, high = share_interval(hit, source_id)
    return {"value": float(hit.mean()), "low": low, "high": high}


def _fidelity(
    inputs: Inputs, samples: Images
) -> tuple[dict[str, Number], dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Distance of generated from real images in features of generation 0's classifier.

    The baseline of each number is that of held-out real images, as far as no pool has used them.
    """
    config = inputs.config
    data = inputs.data
    reserve = pool_rules.unused_reserve(
        config.pool, (config.seed, "pool"), data.reserve, inputs.generation
    )
    generated, real, held_out = (
        fidelity.Labelled(inputs.features(images.pixels), images.label, images.group)
        for images in (samples, data.train, reserve)
    )
    fidelity.compile_tiles(real.features.shape[1], NEIGHBOURS)
    report = fidelity.report(
        generated,
        real,
        held_out,
        len(data.classes),
        len(data.groups),
        (*inputs.key_path, "measure", "fidelity"),
        NEIGHBOURS,
    )
    names = {"frechet": "fid", "kernel": "kid"}
    metrics = {}
    for name, value in report["overall"].items():
        if name != "count":
            baseline = report["floor"][name]
            metrics[names.get(name, name)] = {"value": value, "baseline": baseline}
    copied = report["memorization"]
    metrics["memorized_share"] = {
        "value": copied["share_nearer"],
        "low": copied["low"],
        "high": copied["high"],
        "baseline": copied["floor"]["share_nearer"],
    }
    tables = {}
    for place in ("class", "group"):
        rows = []
        for value, floor in zip(report[f"per_{place}"], report[f"per_{place}_floor"], strict=True):
            row = {n: {"value": value[n], "baseline": floor[n]} for n in value if n != "count"}
            rows.append({names.get(n, n): x for n, x in row.items()} | {"count": value["count"]})
        tables[f"fidelity_by_{place}"] = rows
    facts = {
        "fidelity_features": {
            "network": "classifier of generation 0",
            "digest": inputs.features_digest,
            "dimension": real.features.shape[1],
        },
        "notes": report["notes"],
    }
    return metrics, tables, _neighbours(inputs, samples, generated, real), facts


def _neighbours(
    inputs: Inputs, samples: Images, generated: fidelity.Labelled, real: fidelity.Labelled
) -> dict[str, np.ndarray]:
    """A few generated images per class, each with its nearest real training image."""
    first = []
    for c in range(len(inputs.data.classes)):
        first.append(np.flatnonzero(samples.label == c)[:NEIGHBOURS_PER_CLASS])
    shown = np.sort(np.concatenate(first))
    index, distance = fidelity.nearest(generated.features[shown], real.features)
    train = inputs.data.train
    return {
        "id": samples.id[shown],
        "label": samples.label[shown],
        "pixels": samples.pixels[shown],
        "neighbour": train.pixels[index],
        "neighbour_id": train.id[index],
        "distance": distance,
    }


def _foreground(inputs: Inputs) -> dict[str, Any]:
    """What the classifier relies on, on held-out images with masks of their objects."""
    probe = inputs.data.probe
    assert probe is not None
    # The same noise in every generation, so that generations can be compared.
    key_path = (inputs.config.seed, "spurious")
    return foreground.evaluate(inputs.classify, probe, len(inputs.data.classes), key_path)


def _write(run: GenerationRun, outputs: Outputs) -> Result:
    digests = {}
    files = {"predictions": outputs.predictions, "neighbours": outputs.neighbours}
    for name, arrays in files.items():
        if arrays is not None:
            digests[f"{name}.npz"] = store.write_npz(run.folder / f"{name}.npz", arrays)
    return Result(digests=digests, record=outputs.record)


MEASURE = Phase(name="measure", read=_read, compute=each(measure), write=_write)
