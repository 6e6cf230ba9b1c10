"""The phase `measure`: what is said of a generation's classifier and of the images it drew."""

from dataclasses import replace

import numpy as np

from selfloop_jax.data.colorize import read_group
from selfloop_jax.data.images import Images
from selfloop_jax.loop import pool_rules
from selfloop_jax.loop.context import Entry, GenerationRun
from selfloop_jax.measure import composition, fairness, fidelity, foreground
from selfloop_jax.measure.intervals import share_interval
from selfloop_jax.measure.null import summary
from selfloop_jax.runtime import store, workdir

NEIGHBOURS_PER_CLASS = 3  # drawn images shown in the report beside their nearest training image


def measure_phase(gen: GenerationRun) -> Entry:
    """Predicts the held-out images and measures classifier and drawn images."""
    config, data = gen.study.config, gen.study.data
    held_out = {"test": data.test, "validation": data.validation}[config.measure.split]
    logits = gen.study.networks.predict["classifier"](
        gen.trained(gen.number, "classifier"), held_out.pixels
    )
    columns = {
        "id": held_out.id,
        "label": held_out.label,
        "group": held_out.group,
        "logits": logits,
    }
    if held_out.source_id is not None:
        columns["source_id"] = held_out.source_id
    digests = {"predictions.npz": store.write_npz(gen.folder / "predictions.npz", columns)}
    entry = {"split": config.measure.split, **_classifier(gen, held_out, logits.argmax(axis=1))}
    entry |= {"samples": None, "fidelity": None}
    if gen.generates:
        entry["samples"] = _samples(gen, held_out, entry["metrics"]["accuracy"])
        entry["fidelity"], digests["neighbours.npz"] = _fidelity(gen)
    entry["spurious"] = _spurious(gen) if config.measure.split == "test" else None
    return {"digests": digests, **entry}


def _classifier(gen: GenerationRun, held_out: Images, found: np.ndarray) -> Entry:
    """Fairness numbers, and what chance alone does to each."""
    section, data = gen.study.config.measure, gen.study.data
    columns, sizes = (held_out.label, found, held_out.group), (len(data.classes), len(data.groups))
    return {
        "metrics": {
            **fairness.summary(*columns, *sizes, data.nested),
            "aligned_contrast": fairness.aligned_contrast(*columns, data.aligned_group, *sizes),
        },
        "uncertainty": summary(
            *columns,
            held_out.source_id,
            *sizes,
            data.aligned_group,
            data.nested,
            (*gen.address, "measure", "uncertainty"),
            section.replicates,
            section.level,
        ),
    }


def _samples(gen: GenerationRun, held_out: Images, accuracy: float) -> Entry:
    """What is said of the drawn images: composition, and how far classifiers agree with what was asked."""
    config, data = gen.study.config, gen.study.data
    samples = gen.samples(gen.number)
    drawn = composition.summary(
        samples.label,
        samples.group,
        data.train.joint(len(data.classes), len(data.groups)),
        data.aligned_group,
        data.members,
    )
    drawn |= _composition_by_chance(gen, drawn["joint"])
    first = gen.study.networks.predict["classifier"](gen.trained(0, "classifier"), samples.pixels)
    agrees = first.argmax(axis=1) == samples.condition
    drawn["classifier_agreement"] = float(agrees.mean())
    drawn["beside"]["classifier_agreement"] = _bounds(agrees)
    score, right = _classification_accuracy_score(gen, held_out, accuracy)
    drawn |= score
    if right is not None:
        drawn["beside"]["classification_accuracy_score"] = _bounds(right, held_out.source_id)
    if data.colours and config.loop.group_source == "annotator":
        oracle = read_group(samples.pixels, data.colours)
        drawn["annotator_agreement"] = float((samples.group == oracle).mean())
        seen = replace(samples, group=oracle).joint(*drawn["joint"].shape)
        aligned = np.flatnonzero(data.aligned_group >= 0)
        own = seen[aligned, data.aligned_group[aligned]].sum()
        drawn["bias_aligned_share_by_colour"] = (
            own / seen[aligned].sum() if seen[aligned].any() else np.nan
        )
    return drawn


def _composition_by_chance(gen: GenerationRun, joint: np.ndarray) -> Entry:
    """Coverage of the cells, nulls and intervals of the composition, and shares freed of annotator errors."""
    data, replicates = gen.study.data, gen.study.config.measure.replicates
    real = data.train.joint(*joint.shape)
    confusion = annotator_confusion(gen)
    low, high = composition.aligned_interval(joint, data.aligned_group)
    found = {
        "cell_coverage": composition.cell_coverage(joint, real, data.members),
        "beside": {"bias_aligned_share": {"low": low, "high": high}},
    }
    if (
        gen.study.config.diffusion.condition_on == "label"
    ):  # else groups were imposed, chance had no say
        address = (*gen.address, "measure", "composition")
        null = composition.null(real, joint, data.members, address, replicates, confusion)
        tested = ("kl_to_real", "total_variation_to_real", "cell_coverage")
        found["beside"] |= {name: {"null": null[name], "p": null[f"{name}_p"]} for name in tested}
    if confusion is not None:
        found["corrected"] = composition.corrected_shares(
            joint, confusion, data.members, data.aligned_group
        )
    return found


def annotator_confusion(gen: GenerationRun) -> list[np.ndarray] | None:
    """Per class how the frozen annotator reads real held-out images; None where it labels nothing."""
    if "annotator" not in gen.study.networks.trainers:
        return None
    if not gen.number:
        return gen.entries["annotator"]["annotator"]["confusion"]
    return store.read_json(workdir.generation_dir(gen.home, 0) / "record.json")["annotator"][
        "confusion"
    ]


def _fidelity(gen: GenerationRun) -> tuple[Entry, str]:
    """How close drawn images are to real ones, in features of generation 0's classifier; neighbours' digest.

    Real images are the training split, the floor is that of the reserve, as far as no pool has
    taken of it.
    """
    config, data = gen.study.config, gen.study.data
    reserve = pool_rules.unused_reserve(
        config.pool, (config.seed, "pool"), data.reserve, gen.number
    )
    samples = gen.samples(gen.number)
    state = gen.trained(0, "classifier")
    drawn, real, held_out = (
        fidelity.Labelled(
            gen.study.networks.features(state, images.pixels), images.label, images.group
        )
        for images in (samples, data.train, reserve)
    )
    fidelity.compile_tiles(real.features.shape[1], fidelity.NEIGHBOURS)
    report = fidelity.report(
        drawn,
        real,
        held_out,
        len(data.classes),
        len(data.groups),
        (*gen.address, "measure", "fidelity"),
        fidelity.NEIGHBOURS,
    )
    shown = np.sort(
        np.concatenate(
            [
                np.flatnonzero(samples.label == c)[:NEIGHBOURS_PER_CLASS]
                for c in range(len(data.classes))
            ]
        )
    )
    index, distance = fidelity.nearest(drawn.features[shown], real.features)
    neighbours = {
        "id": samples.id[shown],
        "label": samples.label[shown],
        "pixels": samples.pixels[shown],
        "neighbour": data.train.pixels[index],
        "neighbour_id": data.train.id[index],
        "distance": distance,
    }
    digest = store.write_npz(gen.folder / "neighbours.npz", neighbours)
    source = {
        "network": "classifier of generation 0",
        "digest": gen.digest(0, "classifier"),
        "dimension": real.features.shape[1],
    }
    return {"features": source, **report}, digest


def _spurious(gen: GenerationRun) -> Entry | None:
    """What the classifier rests on, where there are images with masks of their objects."""
    data = gen.study.data
    if data.probe is None:
        return None
    state = gen.trained(gen.number, "classifier")

    def predict(pixels: np.ndarray) -> np.ndarray:
        return gen.study.networks.predict["classifier"](state, pixels)

    address = (gen.study.config.seed, "spurious")
    return foreground.evaluate(predict, data.probe, len(data.classes), address)


def _bounds(hit: np.ndarray, source_id: np.ndarray | None = None) -> Entry:
    """The interval of a share, as the record has it."""
    return dict(zip(("low", "high"), share_interval(hit, source_id), strict=True))


def _classification_accuracy_score(
    gen: GenerationRun, held_out: Images, accuracy: float
) -> tuple[Entry, np.ndarray | None]:
    """Accuracy on real images after training on generated ones, its ratio to training on real ones; hits."""
    if not gen.entries["generated_classifier"]["digests"]:
        return {
            "classification_accuracy_score": None,
            "classification_accuracy_score_ratio": None,
        }, None
    state = gen.trained(gen.number, "generated_classifier")
    right = (
        gen.study.networks.predict["classifier"](state, held_out.pixels).argmax(axis=1)
        == held_out.label
    )
    if gen.number:
        record = store.read_json(workdir.generation_dir(gen.home, 0) / "record.json")
        accuracy = record["metrics"]["accuracy"]
    score = float(right.mean())
    return {
        "classification_accuracy_score": score,
        "classification_accuracy_score_ratio": score / accuracy if accuracy else None,
    }, right
