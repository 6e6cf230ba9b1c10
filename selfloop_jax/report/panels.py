"""The panels of the report: which metrics share a figure, their order and captions."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from selfloop_jax.analysis.arms import Arm
from selfloop_jax.measure.metrics import METRICS

# What the grey null bands of a section of METRICS are.
NULLS = {
    "classifier": "groups permuted among the test images",
    "composition": "groups sampled with the shares of the real images",
}


@dataclass(frozen=True)
class Panel:
    """Metrics that share a figure; `keys` are those of METRICS."""

    name: str
    title: str
    caption: str
    keys: tuple[str, ...]


PANELS = (
    Panel(
        "accuracy",
        "Accuracy",
        "Accuracy of each generation's classifier on the {split} images: over all images, in the "
        "worst group, and in the worst subgroup (one class and one group).",
        ("accuracy", "worst_group_accuracy", "worst_subgroup_accuracy"),
    ),
    Panel(
        "gaps",
        "Gaps between groups",
        "0 is parity. All but the last are ranges over groups, so the finite number of {split} "
        "images alone lifts them above 0. The last is signed: the recall of a class in its "
        "bias-aligned group (the group that the initial bias ties to the class) minus the recall "
        "in its other, conflicting groups, mean over classes.",
        (
            "equal_opportunity_difference_mean",
            "equal_opportunity_difference_max",
            "equalized_odds_difference",
            "demographic_parity_difference",
            "maximal_disparity",
            "macro_std",
            "aligned_contrast",
        ),
    ),
    Panel(
        "ratios",
        "Disparate impact ratio",
        "Lowest over highest rate at which a class is predicted, over groups; mean and minimum "
        "over classes. 1 is parity.",
        ("disparate_impact_ratio_mean", "disparate_impact_ratio_min"),
    ),
    Panel(
        "composition",
        "Composition of the generated images",
        "KL divergence and total variation distance between the subgroup shares of generated and "
        "of real images: 0 means equal shares, and the finite number of images alone lifts both "
        "above 0. Coverage: share of the real subgroups that have a generated image. "
        "Bias-aligned: share of the generated images in the aligned group of their class; "
        "corrected: corrected for the errors of the group classifier, as measured on real images; "
        "by colour: read from the pixels.",
        (
            "kl_to_real",
            "total_variation_to_real",
            "subgroup_coverage",
            "bias_aligned_share",
            "bias_aligned_share_corrected",
            "bias_aligned_share_by_colour",
        ),
    ),
    Panel(
        "fidelity",
        "Fidelity of the generated images",
        "Generated against real held-out images, in {features} features (classifier: that of "
        "generation 0): not comparable with numbers in features of another network. FID and KID: "
        "0 is the same distribution. Precision and density: how many generated images lie among "
        "real ones; recall and coverage: how many real images lie among generated ones. Memorized "
        "share: share of the generated images that are nearer to a training image than to any of "
        "as many held-out images; about 0.5 without memorization. Near-copies: share of the "
        "generated images that are less than half as far from a training image as from a held-out "
        "one, minus the reverse; about 0 without memorization.",
        (
            *("fid", "kid", "precision", "recall", "density", "coverage"),
            *("memorized_share", "copied_share", "copied_share_pixels"),
        ),
    ),
    Panel(
        "content",
        "Content of the generated images",
        "Classifier agreement: share of the generated images that the classifier of generation 0 "
        "assigns to the requested class. Annotator agreement: share whose group the annotator "
        "reads as the pixels have it. CAS: accuracy on real images of a classifier trained only "
        "on generated images (from the weights of init_from, if any), and its ratio to the "
        "accuracy of generation 0.",
        ("classifier_agreement", "annotator_agreement", "cas", "cas_ratio"),
    ),
    Panel(
        "ablations",
        "Accuracy without the object",
        "Accuracy on the images with masks, mean over classes: on the original images, with the "
        "object grayed, with its bounding box grayed, and with the box tiled by its surroundings. "
        "The accuracy that remains does not rest on the object.",
        ("ablation_none", "ablation_object", "ablation_box", "ablation_tile"),
    ),
)


def panels(keys: Iterable[str]) -> list[Panel]:
    """Returns the panels of the keys, with one more for the metrics that no panel names.

    Counts (`whole`) have no figure.
    """
    wanted = dict.fromkeys(keys)
    shown = []
    named: set[str] = set()
    for panel in PANELS:
        named.update(panel.keys)
        if not wanted.keys().isdisjoint(panel.keys):
            shown.append(panel)
    # Metrics that a user has added.
    others = tuple(key for key in wanted if key not in named and not is_count(key))
    if others:
        shown.append(Panel("others", "Other metrics", "Metrics from outside the package.", others))
    return shown


def is_count(key: str) -> bool:
    """Returns whether a metric is a whole number."""
    return key in METRICS and METRICS[key].whole


def title_of(key: str, features: str = "classifier") -> str:
    """Returns the title of a metric; its key where METRICS has no row for it.

    features: the name of the network, which the title of a FID or KID says.
    """
    title = METRICS[key].title if key in METRICS else key.replace("_", " ")
    return title.replace("classifier features", f"{features} features")


def features_of(arms: Iterable[Arm]) -> str:
    """Returns the networks whose features the fidelity of the arms compares, by their names."""
    # A CSV of before the setting has the default.
    names = {arm.setting("measure.features") or "classifier" for arm in arms}
    return " or ".join(sorted(names))


def arrow_of(key: str) -> str:
    """Returns the arrow towards better or fairer values, or an empty string."""
    return METRICS[key].arrow if key in METRICS else ""


def number_text(value: float | None, whole: bool = False) -> str:
    """Returns a number in print: `undefined` for NaN, a dash where the record has none."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "undefined"
    if whole:
        return f"{value:.0f}"
    # Three decimals would show a small number as 0.000.
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"
