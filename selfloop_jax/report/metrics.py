"""The numbers of a record that the report knows by name, and what each is."""

import math
from dataclasses import dataclass

from selfloop_jax.analysis.runs import Run


@dataclass(frozen=True)
class Metric:
    """A number of record.json: its section, its key, its name, and which way is better, if either."""

    section: str
    key: str
    name: str
    better: str = ""  # "↑", "↓" or neither
    whole: bool = False  # a count

    @property
    def column(self) -> str:
        """Its name in a row of numbers."""
        return f"{self.section}.{self.key}"


@dataclass(frozen=True)
class Panel:
    """Metrics that share an axis."""

    name: str
    title: str
    caption: str
    metrics: tuple[Metric, ...]


ACCURACY = Metric("metrics", "accuracy", "accuracy", "↑")


WORST_GROUP = Metric("metrics", "worst_group_accuracy", "worst group", "↑")


WORST_SUBGROUP = Metric("metrics", "worst_subgroup_accuracy", "worst subgroup", "↑")


OPPORTUNITY = Metric("metrics", "equal_opportunity_difference_mean", "equal opportunity, mean", "↓")


ALIGNED = Metric("samples", "bias_aligned_share", "bias-aligned share")


PANELS = (
    Panel(
        "accuracy",
        "Accuracy",
        "Share of the {split} images that the classifier of a generation gets right: of all images, "
        "of those in the worst group, of those in the worst subgroup (one class and one group).",
        (ACCURACY, WORST_GROUP, WORST_SUBGROUP),
    ),
    Panel(
        "gaps",
        "Gaps between groups",
        "0 is parity. All but the last are ranges over groups: chance alone lifts them above 0 even without "
        "any bias. Aligned minus other groups: recall of a class in the group that the bias ties to it minus "
        "that in its other groups, mean over classes.",
        (
            OPPORTUNITY,
            Metric("metrics", "equal_opportunity_difference_max", "equal opportunity, max", "↓"),
            Metric("metrics", "equalized_odds_difference", "equalized odds", "↓"),
            Metric("metrics", "demographic_parity_difference", "demographic parity", "↓"),
            Metric("metrics", "maximal_disparity", "maximal disparity", "↓"),
            Metric("metrics", "macro_std", "macro std", "↓"),
            Metric("metrics", "aligned_contrast", "aligned minus other groups"),
        ),
    ),
    Panel(
        "ratios",
        "Disparate impact ratio",
        "Lowest over highest rate at which the groups are given a class; mean and minimum over classes. "
        "1 is parity.",
        (
            Metric("metrics", "disparate_impact_ratio_mean", "mean over classes", "↑"),
            Metric("metrics", "disparate_impact_ratio_min", "minimum over classes", "↑"),
        ),
    ),
    Panel(
        "distance",
        "Generated images against real ones",
        "How far the shares of classes and groups among generated images are from those among real ones, and "
        "the share of the subgroups of real images that have a generated one. 0 is the same shares; chance "
        "alone lifts both distances above it.",
        (
            Metric("samples", "kl_to_real", "KL to real", "↓"),
            Metric("samples", "total_variation_to_real", "total variation to real", "↓"),
            Metric("samples", "cell_coverage", "subgroups covered", "↑"),
        ),
    ),
    Panel(
        "fidelity",
        "Generated images against real training images, in the features of the classifier of generation 0",
        "Frechet and kernel distance: 0 is the same distribution. Precision and density: generated images "
        "among real ones; recall and coverage: real ones among generated ones. Nearer to training: share of "
        "the generated images that are nearer to a training image than to any of as many held-out ones; .5 "
        "is chance, more is memorised.",
        (
            Metric("fidelity", "frechet", "Frechet distance", "↓"),
            Metric("fidelity", "kernel", "kernel distance", "↓"),
            Metric("fidelity", "precision", "precision", "↑"),
            Metric("fidelity", "recall", "recall", "↑"),
            Metric("fidelity", "density", "density", "↑"),
            Metric("fidelity", "coverage", "coverage", "↑"),
            Metric("fidelity", "memorized_share", "nearer to training"),
        ),
    ),
    Panel(
        "content",
        "Content of the generated images",
        "Bias-aligned: share in the group aligned with their class; corrected: freed of what the annotator "
        "of groups confuses, as far as its errors on real images tell; by colour: as the pixels say. "
        "Agreement: share that the classifier of generation 0 gives the class they were drawn for. "
        "Classification accuracy score: accuracy on real images of a classifier trained on generated ones "
        "only (from the weights of init_from, if any); ratio: over the accuracy of generation 0.",
        (
            ALIGNED,
            Metric("samples", "corrected.aligned.share", "bias-aligned share, corrected"),
            Metric("samples", "bias_aligned_share_by_colour", "bias-aligned share, by colour"),
            Metric("samples", "classifier_agreement", "classifier agreement", "↑"),
            Metric(
                "samples", "classification_accuracy_score", "classification accuracy score", "↑"
            ),
            Metric("samples", "classification_accuracy_score_ratio", "score, ratio to real", "↑"),
            Metric("samples", "annotator_agreement", "annotator, agreement with colour", "↑"),
        ),
    ),
    Panel(
        "ablations",
        "Accuracy without the object",
        "Accuracy on the images with masks, mean over classes: as they are, with the object grayed, with its "
        "bounding box grayed, with the box tiled by what is beside it. What is left was never the object's.",
        tuple(
            Metric("spurious", f"ablations.{kind}.class_mean", name)
            for kind, name in (
                ("none", "as they are"),
                ("object", "object gray"),
                ("box", "box gray"),
                ("tile", "box tiled"),
            )
        ),
    ),
)


COUNTS = (
    Metric("metrics", "undefined_cells", "undefined subgroups", whole=True),
    Metric("samples", "count", "generated images", whole=True),
    Metric("samples", "unknown_group", "generated images of unknown group", whole=True),
)


def by_key(key: str) -> Metric:
    """The metric of a record's section `metrics` by its key."""
    every = (metric for panel in PANELS for metric in panel.metrics)
    return next(
        (m for m in every if (m.section, m.key) == ("metrics", key)), Metric("metrics", key, key)
    )


def values(run: Run, metric: Metric) -> list[float]:
    """A metric over the finished generations; NaN where it is undefined, infinite or absent."""
    found = (generation.value(metric.section, metric.key) for generation in run.generations)
    return [value if value is not None and math.isfinite(value) else math.nan for value in found]


def text(value: float | None, whole: bool = False) -> str:
    """A metric in print: `undefined` for NaN, a dash where the record has no such number."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "undefined"
    if whole:
        return f"{value:.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"
