"""A workdir as plain data: its finished generations, read from disk without jax."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax import __version__
from selfloop_jax.analysis.losses import Losses, read_losses
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store
from selfloop_jax.runtime.workdir import check_version, generation_dirs

EXAMPLES = 3  # images kept per class or group
REQUIRED = ("generation", "data", "pool", "metrics", "tables")
NULL_QUANTILES = ("null05", "null50", "null95")

Arrays = dict[str, np.ndarray]
Examples = tuple[np.ndarray, ...]  # per class or group uint8[k,H,W,3], k <= EXAMPLES


@dataclass(frozen=True)
class Estimate:
    """One number of a record. NaN marks an undefined part, None an absent one."""

    value: float
    low: float | None = None
    high: float | None = None
    null: tuple[float, float, float] | None = None  # 5, 50 and 95 % quantiles
    p: float | None = None
    baseline: float | None = None

    def parts(self) -> Iterator[tuple[str, float]]:
        """Yields (name, number) of every part that is present, quantiles of the null one by one."""
        parts = [("value", self.value), ("low", self.low), ("high", self.high), ("p", self.p)]
        parts += zip(NULL_QUANTILES, self.null or (), strict=False)
        parts += [("baseline", self.baseline)]
        for name, number in parts:
            if number is not None:
                yield name, number


@dataclass(frozen=True)
class Generation:
    """One finished generation: its record, its example images, and its tables as arrays."""

    number: int
    record: store.Json
    metrics: dict[str, Estimate]
    pool_counts: np.ndarray  # int[C,G]
    split_counts: dict[str, np.ndarray]  # int[C,G] of `train` and `reserve`, where recorded
    generated_counts: np.ndarray | None  # int[C,G]; None in a control, which generates nothing
    recall: np.ndarray | None  # float64[C,G], NaN where a subgroup has no image
    by_class: Examples | None  # generated images; None: samples.npz is missing or damaged
    by_group: Examples | None
    neighbours: Arrays | None  # generated images and their nearest training images

    def value(self, key: str) -> float | None:
        """Returns the value of a metric: NaN where it is undefined, None where it is absent."""
        number = self.metrics.get(key)
        return None if number is None else number.value


@dataclass(frozen=True)
class Run:
    """One workdir with at least one finished generation."""

    path: Path
    config: store.Json
    manifest: tuple[store.Json, ...]
    generations: tuple[Generation, ...]
    real_by_class: Examples | None
    real_by_group: Examples | None
    real_ids: Arrays | None  # of training and test images, by `train` and `test`
    losses: Losses
    notes: tuple[str, ...]  # what is missing, one sentence each

    @property
    def last(self) -> Generation:
        """The newest finished generation."""
        return self.generations[-1]

    @property
    def data(self) -> store.Json:
        """Source, class names, group names, `nested` and `aligned_group` of the last generation."""
        return self.last.record["data"]

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return [str(name) for name in self.data["classes"]]

    @property
    def groups(self) -> list[str]:
        """Names of the groups."""
        return [str(name) for name in self.data["groups"]]

    @property
    def seed(self) -> int:
        """The seed of the run; 0 where its config has none."""
        return int(self.config.get("seed", 0))

    @property
    def nested(self) -> bool:
        """Whether each group lies within one class."""
        return bool(self.data.get("nested"))

    @property
    def split(self) -> str:
        """The split that its metrics are measured on."""
        return str(self.last.record.get("split", "test"))

    @property
    def features(self) -> str:
        """The network whose features its fidelity compares, by the name of `measure.features`."""
        # Runs of before the field have the default.
        return str(self.config.get("measure", {}).get("features", "classifier"))

    @property
    def level(self) -> str:
        """The confidence level of the intervals of its records, as `95 %`."""
        # Records of the first 0.2 do not name it.
        return f"{100 * float(self.last.record.get('level', 0.95)):g} %"

    def content(self, field: str) -> str | None:
        """What lies at the path of a config field, by its digest; None where nothing says so."""
        if field == "data.cache_dir":
            return ""  # no bit depends on where decoded images are kept
        if field.startswith("data."):
            return self.data.get("test_digest")
        name = "measure.features" if field == "measure.features_weights" else field
        return self.last.record.get("initial_weights", {}).get(name)

    @property
    def real_counts(self) -> np.ndarray | None:
        """int[C,G] of the real training images; None where generation 0 is missing."""
        first = self.generations[0]
        return first.pool_counts if first.number == 0 else None


def read_runs(workdirs: Sequence[Path]) -> tuple[Run, ...]:
    """Reads each workdir once. Raises `UsageError` where they cannot be shown together."""
    paths = [Path(workdir).resolve() for workdir in workdirs]
    if not paths:
        raise UsageError("WORKDIR: none given; name the folder of at least one run")
    for path, workdir in zip(paths, workdirs, strict=True):
        if paths.count(path) > 1:
            raise UsageError(f"{workdir}: given more than once; give each run once")
    runs = tuple(read_run(workdir) for workdir in workdirs)
    first = runs[0]
    for run in runs[1:]:
        if run.data["source"] != first.data["source"]:
            raise UsageError(
                f"data.source: {first.data['source']!r} in {first.path} but "
                f"{run.data['source']!r} in {run.path}; runs that are overlaid need one data source"
            )
    return runs


def unreadable_versions(workdirs: Sequence[Path]) -> dict[Path, str]:
    """Returns {workdir: version} of the runs of other versions that this one cannot read.

    Damage is none of them: a run of this version that cannot be read raises later, in `read_runs`.
    """
    found = {}
    for workdir in workdirs:
        version = _version_of(Path(workdir))
        if version in (None, __version__):
            continue
        try:
            read_run(workdir)
        except (RunError, UsageError):
            found[workdir] = str(version)
    return found


def _version_of(workdir: Path) -> str | None:
    """The version of the program that a run was last made with; None where nothing says so."""
    path = workdir / "manifest.json"
    entries = store.read_json(path) if path.is_file() else None
    if not isinstance(entries, list) or not entries:
        return None
    # Version 0.1 did not write its own version.
    return str(entries[-1].get("selfloop_jax", "0.1"))


def read_run(workdir: Path) -> Run:
    """Reads one workdir.

    Raises `UsageError` if it holds no run, no finished generation, or a run of version 0.1.
    """
    path = Path(workdir)
    if not (path / "config.json").is_file():
        raise UsageError(f"{path}: not a workdir; a folder with config.json is needed")
    check_version(path, str(path))
    folders = generation_dirs(path)
    finished = [folder for folder in folders.values() if (folder / "record.json").is_file()]
    if not finished:
        raise UsageError(f"{path}: no finished generation; gen_0000/record.json is needed")
    notes = _gaps(folders, finished)
    generations = tuple(_read_generation(folder, notes) for folder in finished)
    config = store.read_json(path / "config.json")
    if not isinstance(config, dict):
        raise RunError(f"{path / 'config.json'}: damaged: not a JSON object")
    manifest = path / "manifest.json"
    log = path / "metrics.jsonl"
    notes += [f"{file.name}: missing, not shown." for file in (manifest, log) if not file.is_file()]
    for generation in generations:
        unseen = generation.record.get("samples", {}).get("requested_without_training_image")
        if unseen:
            notes.append(
                f"generation {generation.number}: {unseen} images were requested in subgroups "
                "without a training image."
            )
    real = _read_arrays(path / "real.npz", None, notes)
    data = generations[-1].record["data"]
    return Run(
        path=path.resolve(),
        config=config,
        manifest=tuple(store.read_json(manifest)) if manifest.is_file() else (),
        generations=generations,
        real_by_class=examples(real, "label", len(data["classes"])),
        real_by_group=examples(real, "group", len(data["groups"])),
        real_ids=_real_ids(real),
        losses=read_losses(log, {g.number for g in generations}) if log.is_file() else {},
        notes=tuple(notes),
    )


def _real_ids(real: Arrays | None) -> Arrays | None:
    names = {"train": "train_id", "test": "test_id"}
    if real is None or not set(names.values()) <= set(real):
        return None
    return {name: real[column] for name, column in names.items()}


def examples(arrays: Arrays | None, column: str, values: int) -> Examples | None:
    """Returns the first images of each class or group (`column`), by id where they have one."""
    if arrays is None:
        return None
    # By id where there is one: what is shown does not depend on the order in the file.
    order = np.argsort(arrays.get("id", np.arange(len(arrays[column]))), kind="stable")
    labels = arrays[column][order]
    first = [order[labels == value][:EXAMPLES] for value in range(values)]
    return tuple(arrays["pixels"][rows] for rows in first)


def _gaps(folders: Mapping[int, Path], finished: Sequence[Path]) -> list[str]:
    """Sentences on generations that are unfinished or missing."""
    notes = []
    for folder in folders.values():
        if folder not in finished:
            notes.append(f"{folder.name} has no record.json: not finished, left out.")
    # A folder in the middle may be missing altogether.
    for number in range(max(folders)):
        if number not in folders:
            notes.append(f"gen_{number:04d} is missing: curves are interrupted there.")
    return notes


def _read_generation(folder: Path, notes: list[str]) -> Generation:
    """One generation; RunError where its record is damaged."""
    path = folder / "record.json"
    record = store.read_json(path)
    if not isinstance(record, dict):
        raise RunError(f"{path}: damaged: not a JSON object")
    for key in REQUIRED:
        if key not in record:
            raise RunError(f"{path}: has no field {key!r}")
    try:
        return _generation(folder, record, notes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        version = record.get("version")
        raise RunError(
            f"{path}: damaged, or of another version (written by selfloop_jax {version}): {error!r}"
        ) from error


def _generation(folder: Path, record: store.Json, notes: list[str]) -> Generation:
    classes = len(record["data"]["classes"])
    groups = len(record["data"]["groups"])
    if len(record["data"]["aligned_group"]) != classes:
        raise ValueError("data.aligned_group: one group per class is needed")
    # All tables must fit the names in `data`, or figures would label them wrongly.
    tables = record["tables"]
    generated = _table(tables.get("generated_counts"), (classes, groups))
    pool = _table(record["pool"]["counts"], (classes, groups))
    if pool is None:
        raise ValueError("pool.counts: missing")
    splits = {}
    for split in ("train", "reserve"):
        counts = _table(record["pool"].get(f"{split}_counts"), (classes, groups))
        if counts is not None:
            splits[split] = counts.astype(int)
    recall = _table(tables.get("recall", {}).get("value"), (classes, groups))
    digests = record.get("digests", {})
    samples = None  # a control generates nothing, so nothing is missing there
    if generated is not None:
        samples = _read_arrays(folder / "samples.npz", digests.get("samples.npz"), notes)
    neighbours = None
    if "neighbours.npz" in digests:
        neighbours = _read_arrays(folder / "neighbours.npz", digests["neighbours.npz"], notes)
    return Generation(
        number=int(record["generation"]),
        record=record,
        metrics={key: _number(found) for key, found in record["metrics"].items()},
        pool_counts=pool.astype(int),
        split_counts=splits,
        generated_counts=None if generated is None else generated.astype(int),
        recall=recall,
        by_class=examples(samples, "label", classes),
        by_group=examples(samples, "group", groups),
        neighbours=neighbours,
    )


def _table(values: Any, shape: tuple[int, int]) -> np.ndarray | None:
    """float64[C,G] of a table of the record, NaN for null; None where it is absent."""
    if values is None:
        return None
    table = np.array(values, np.float64)
    if table.shape != shape:
        raise ValueError(f"a table of shape {table.shape} where {shape} is needed")
    return table


def _number(found: store.Json) -> Estimate:
    """A number of the record, with null read as NaN."""
    null = found.get("null")
    if null is not None:
        low, middle, high = null
        null = (_float(low), _float(middle), _float(high))
    # Null is an undefined number and becomes NaN; a part that is absent stays absent.
    parts = {name: _float(found[name]) for name in ("low", "high", "baseline") if name in found}
    # A p of null means that nothing was tested, so it counts as absent.
    p = found.get("p")
    return Estimate(_float(found["value"]), null=null, p=p if p is None else float(p), **parts)


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _read_arrays(path: Path, digest: str | None, notes: list[str]) -> Arrays | None:
    """The arrays of an npz; None and a note where it is missing or damaged."""
    try:
        return store.read_npz(path, digest)
    except RunError as error:
        reason = str(error).removeprefix(f"{path}: ")
        inside = path.parent.name.startswith("gen_")
        name = path.relative_to(path.parents[1] if inside else path.parent)
        notes.append(f"{name}: {reason}; figures that need it are left out.")
        return None
