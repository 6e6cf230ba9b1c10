"""Small synthetic workdirs in the shape that the loop writes, for tests of analysis and report."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ["zero", "one", "two"]
COLOURS = ["red", "green"]
IMAGES = 30  # per set
GAP = "equal_opportunity_difference_mean"
VERDICT = {"control": "by_rule", "metrics": [GAP], "margin": 0.05, "alpha": 0.05}

# The metrics of a record, with values that fall by 0.1 a generation from 0.9.
FALLING = (
    *("accuracy", "worst_group_accuracy", "worst_subgroup_accuracy", GAP),
    *("equal_opportunity_difference_max", "equalized_odds_difference", "maximal_disparity"),
    *("disparate_impact_ratio_mean", "disparate_impact_ratio_min", "macro_std"),
)


def make_workdir(
    path: Path,
    generations: int = 3,
    seed: int = 0,
    rule: str = "accumulate",
    source: str = "digits",
    groups: int = 2,
    nested: bool = False,
    control: str = "none",
) -> Path:
    """A run whose images and numbers have no meaning; a control generates nothing."""
    path.mkdir(parents=True)
    config = {
        "seed": seed,
        "data": {"source": source},
        "pool": {"rule": rule},
        "loop": {"generations": 3, "control": control, "branch_from": str(seed)},
        "verdict": VERDICT,
    }
    (path / "config.json").write_text(json.dumps(config))
    manifest = {"jax": "0.10.2", "device_kind": "<cpu>", "selfloop_jax": "0.2.0"}
    (path / "manifest.json").write_text(json.dumps([manifest]))
    # Seeds in a row share half of their training images, and all test images.
    train_id = np.arange(5 * seed, 5 * seed + 10)
    np.savez(path / "real.npz", **images(groups), train_id=train_id, test_id=np.arange(4))
    lines = []
    for g in range(generations):
        folder = path / f"gen_{g:04d}"
        folder.mkdir()
        record = make_record(g, seed, source, groups, nested)
        if control == "none":
            np.savez(folder / "samples.npz", **images(groups), id=np.arange(IMAGES))
        else:
            record["metrics"] = {key: record["metrics"][key] for key in FALLING}
            record["tables"] = {"recall": record["tables"]["recall"]}
        (folder / "record.json").write_text(json.dumps(record))
        for phase in ("diffusion", "classifier"):
            lines += [loss_line(g, phase, step, 1 / step) for step in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return path


def loss_line(generation: int, phase: str, step: int, loss: float) -> str:
    return json.dumps({"generation": generation, "phase": phase, "step": step, "loss": loss})


def images(groups: int) -> dict[str, np.ndarray]:
    label = np.arange(IMAGES, dtype=np.int32) % len(CLASSES)
    pixels = np.arange(IMAGES * 192).reshape(IMAGES, 8, 8, 3).astype(np.uint8)
    return {"pixels": pixels, "label": label, "group": label % groups}


def make_record(g: int, seed: int, source: str, groups: int, nested: bool) -> dict[str, Any]:
    label = np.arange(IMAGES) % len(CLASSES)
    counts = np.zeros((len(CLASSES), groups), int)
    np.add.at(counts, (label, label % groups), 1)
    falling = round(0.9 - 0.1 * g - 0.01 * seed, 3)
    metrics = {key: {"value": falling} for key in FALLING}
    metrics["accuracy"] |= {"low": falling - 0.05, "high": falling + 0.05}
    metrics[GAP] |= {"null": [0.1, 0.2, 0.3], "p": 0.001}
    metrics |= {
        "demographic_parity_difference": {"value": None},
        "undefined_subgroups": {"value": 0},
        "generated_count": {"value": IMAGES},
        "generated_unknown_group": {"value": 0},
        "kl_to_real": {"value": 0.1 * g, "null": [0.0, 0.01, 0.02], "p": 0.5},
        "total_variation_to_real": {"value": 0.2 * g},
        "bias_aligned_share": {"value": 0.7, "low": 0.6, "high": 0.8},
        "classifier_agreement": {"value": 0.9},
        "fid": {"value": 1.0 + g, "baseline": 0.5},
    }
    data = {
        "source": source,
        "classes": CLASSES,
        "groups": [f"{COLOURS[i % 2]}{i}" for i in range(groups)],
        "nested": nested,
        "aligned_group": [0, 1, 0],
    }
    if nested:
        data["groups_of_class"] = [
            list(range(c, groups, len(CLASSES))) for c in range(len(CLASSES))
        ]
    recall = np.where(counts > 0, 0.9, np.nan)
    tables = {
        "recall": {"value": nulls(recall), "low": nulls(recall - 0.1), "high": nulls(recall)},
        "generated_counts": counts.tolist(),
        "fidelity_by_class": [{"fid": {"value": 2.0, "baseline": 1.0}} for _ in CLASSES],
        "fidelity_by_group": [{"fid": {"value": 3.0, "baseline": None}} for _ in range(groups)],
    }
    pool = {
        "size": IMAGES * (g + 1),
        "real": IMAGES,
        "generated": {str(origin): IMAGES for origin in range(g)},
        "counts": counts.tolist(),
        "unknown_group": 0,
        "train_counts": counts.tolist(),
        "reserve_counts": (2 * counts).tolist(),
    }
    return {
        "generation": g,
        "seed": seed,
        "exact": True,
        "split": "test",
        "data": data,
        "pool": pool,
        "metrics": metrics,
        "tables": tables,
        "notes": ["sizes: few images"],
        "digests": {"diffusion": "ab" * 32},
        "parents": {},
        "seconds": {"pool": 0.1, "diffusion": 2.0},
        "images_per_second": {"diffusion": 2500.0},
        "version": "0.2.0",
    }


def nulls(table: np.ndarray) -> list[list[float | None]]:
    """A table as JSON: null for NaN."""
    return np.where(np.isnan(table), None, table).tolist()


def edit_record(workdir: Path, g: int, change: Callable[[dict], Any]) -> None:
    edit(workdir / f"gen_{g:04d}" / "record.json", change)


def edit(path: Path, change: Callable[[dict], Any]) -> None:
    """Changes a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def set_metric(workdir: Path, g: int, key: str, value: float, **parts: Any) -> None:
    def change(record: dict) -> None:
        record["metrics"][key] = {"value": value, **parts}

    edit_record(workdir, g, change)


def make_arm(
    folder: Path,
    rule: str,
    control: str,
    slope: float,
    seeds: Iterable[int] = range(6),
    generations: int = 3,
) -> list[Path]:
    """Runs whose gap starts at 0.2 and changes by `slope` and a little more a generation."""
    workdirs = []
    for seed in seeds:
        path = folder / f"{control}-{rule}-{seed}"
        make_workdir(path, generations, seed, rule, control=control)
        for g in range(generations):
            set_metric(path, g, GAP, 0.2 + g * (slope + 0.001 * (seed + 1)))
        workdirs.append(path)
    return workdirs


def make_study(folder: Path, seeds: Iterable[int] = range(6)) -> list[Path]:
    """Two loops with their controls; the gap grows under `accumulate` and not under `replace`."""
    seeds = list(seeds)
    return [
        *make_arm(folder, "accumulate", "none", 0.1, seeds),
        *make_arm(folder, "replace", "none", 0.0, seeds),
        *make_arm(folder, "accumulate", "fresh_real", 0.0, seeds),
        *make_arm(folder, "replace", "fresh_real", 0.0, seeds),
        *make_arm(folder, "accumulate", "no_synthetic", 0.0, seeds),
    ]
