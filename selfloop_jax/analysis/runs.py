"""A workdir as plain data: what the report shows of a run, read from disk and nothing else."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfloop_jax.analysis.arrays import Arrays, Tiles, recall, tiles
from selfloop_jax.analysis.losses import Losses, read_losses
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store

_REQUIRED = ("generation", "data", "pool", "metrics", "samples")


@dataclass(frozen=True)
class Generation:
    """One finished generation: its record, the images shown of it, and its recall per subgroup."""

    number: int
    record: store.Json
    tiles: Tiles | None  # by class; None: samples.npz is missing or damaged
    group_tiles: Tiles | None
    recall: np.ndarray | None  # float64[C,G], NaN where a subgroup has no image; None as above
    neighbours: Arrays | None  # drawn images beside their nearest training images; None as above

    def value(self, section: str, key: str) -> float | None:
        """A number of the record, `key` a dotted path: NaN where it is undefined, None where it is absent."""
        found = self.record.get(section)
        for name in key.split("."):
            if not isinstance(found, dict) or name not in found:
                return None
            found = found[name]
        return math.nan if found is None else float(found)

    @property
    def joint(self) -> np.ndarray | None:
        """int[C,G], generated images by label and group; None in a control, which draws none."""
        samples = self.record["samples"]
        return None if samples is None else np.asarray(samples["joint"])


@dataclass(frozen=True)
class Run:
    """One workdir with at least one finished generation."""

    path: Path
    config: store.Json
    manifest: tuple[store.Json, ...]
    generations: tuple[Generation, ...]
    real: Tiles | None
    real_groups: Tiles | None
    losses: Losses
    notes: tuple[str, ...]  # what is missing, in plain sentences

    @property
    def last(self) -> Generation:
        """The newest finished generation."""
        return self.generations[-1]

    @property
    def data(self) -> store.Json:
        """Source, class names, group names, `nested`, `aligned_group`: those of the last generation."""
        return self.last.record["data"]

    @property
    def seed(self) -> int:
        """The seed of the run; 0 where its config does not say."""
        return int(self.config.get("seed", 0))

    @property
    def nested(self) -> bool:
        """Whether each group lies within one class."""
        return bool(self.data.get("nested"))

    @property
    def split(self) -> str:
        """The split its metrics are measured on."""
        return str(self.last.record.get("split", "test"))

    @property
    def reference(self) -> np.ndarray | None:
        """int[C,G], the real images of generation 0 by label and group; None if it is not there."""
        first = self.generations[0]
        return np.asarray(first.record["pool"]["joint"]) if first.number == 0 else None


def read_runs(workdirs: Sequence[Path]) -> tuple[Run, ...]:
    """Read each workdir once; raise `UsageError` where they cannot be shown together."""
    paths = [Path(workdir).resolve() for workdir in workdirs]
    if not paths:
        raise UsageError("WORKDIR: none given; name the folder of at least one run")
    for path, workdir in zip(paths, workdirs, strict=True):
        if paths.count(path) > 1:
            raise UsageError(f"{workdir}: given more than once; each run is overlaid once")
    runs = tuple(map(read_run, workdirs))
    for run in runs[1:]:
        ours, theirs = runs[0].data["source"], run.data["source"]
        if ours != theirs:
            raise UsageError(
                f"data.source: {ours!r} in {runs[0].path} but {theirs!r} in {run.path}; "
                "runs that are overlaid need one data source"
            )
    return runs


def read_run(workdir: Path) -> Run:
    """Read one workdir; raise `UsageError` if it holds no run or no finished generation."""
    path = Path(workdir)
    if not (path / "config.json").is_file():
        raise UsageError(f"{path}: not a workdir; a folder with config.json is needed")
    folders = _generation_folders(path)
    finished = [folder for folder in folders if (folder / "record.json").is_file()]
    if not finished:
        raise UsageError(f"{path}: no finished generation; gen_0000/record.json is needed")
    notes = [
        f"{f.name} has no record.json: not finished, left out."
        for f in folders
        if f not in finished
    ]
    numbers = {int(folder.name.removeprefix("gen_")) for folder in folders}
    gone = sorted(set(range(max(numbers))) - numbers)
    notes += [f"gen_{number:04d} is missing: the curves have a hole there." for number in gone]
    generations = tuple(_read_generation(folder, notes) for folder in finished)
    real = _read_arrays(path / "real.npz", None, notes)
    data = generations[-1].record["data"]
    config = store.read_json(path / "config.json")
    if not isinstance(config, dict):
        raise RunError(f"{path / 'config.json'}: damaged: no object")
    manifest, log = path / "manifest.json", path / "metrics.jsonl"
    notes += [f"{file.name}: missing, not shown." for file in (manifest, log) if not file.is_file()]
    return Run(
        path=path.resolve(),
        config=config,
        manifest=tuple(store.read_json(manifest)) if manifest.is_file() else (),
        generations=generations,
        real=None if real is None else tiles(real, "label", len(data["classes"])),
        real_groups=None if real is None else tiles(real, "group", len(data["groups"])),
        losses=read_losses(log, {g.number for g in generations}) if log.is_file() else {},
        notes=tuple(notes),
    )


def _generation_folders(path: Path) -> list[Path]:
    found = [(re.fullmatch(r"gen_(\d+)", folder.name), folder) for folder in path.iterdir()]
    return [
        folder for _, folder in sorted((int(match[1]), folder) for match, folder in found if match)
    ]


def _read_generation(folder: Path, notes: list[str]) -> Generation:
    """One generation; RunError where its record is damaged or none that this version can read."""
    path = folder / "record.json"
    record = store.read_json(path)
    if not isinstance(record, dict):
        raise RunError(f"{path}: damaged: no object")
    for key in _REQUIRED:
        if key not in record:
            raise RunError(f"{path}: has no field {key!r}")
    try:
        return _generation(folder, record, notes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: damaged, or of another version: {error!r}") from error


def _generation(folder: Path, record: store.Json, notes: list[str]) -> Generation:
    shape = len(record["data"]["classes"]), len(record["data"]["groups"])
    joints = [record["pool"]["joint"], *([record["samples"]["joint"]] if record["samples"] else [])]
    if {np.shape(joint) for joint in joints} != {shape} or len(
        record["data"]["aligned_group"]
    ) != shape[0]:
        raise ValueError("histograms of another shape than classes and groups")
    if not all(
        value is None or isinstance(value, int | float) for value in record["metrics"].values()
    ):
        raise ValueError("metrics that are no numbers")
    classes, groups = len(record["data"]["classes"]), len(record["data"]["groups"])
    digests = record.get("digests", {})
    drawn = record["samples"] is not None
    samples = (
        _read_arrays(folder / "samples.npz", digests.get("samples.npz"), notes) if drawn else None
    )
    beside = digests.get("neighbours.npz")
    neighbours = _read_arrays(folder / "neighbours.npz", beside, notes) if beside else None
    predictions = _read_arrays(folder / "predictions.npz", digests.get("predictions.npz"), notes)
    return Generation(
        number=int(record["generation"]),
        record=record,
        tiles=None if samples is None else tiles(samples, "label", classes),
        group_tiles=None if samples is None else tiles(samples, "group", groups),
        recall=None if predictions is None else recall(predictions, classes, groups),
        neighbours=neighbours,
    )


def _read_arrays(path: Path, digest: str | None, notes: list[str]) -> Arrays | None:
    """The arrays of an npz; where it is missing or damaged, None and a note."""
    try:
        return store.read_npz(path, digest)
    except RunError as error:
        what = str(error).removeprefix(f"{path}: ")
        where = path.relative_to(
            path.parents[1] if path.parent.name.startswith("gen_") else path.parent
        )
        notes.append(f"{where}: {what}; what is drawn from it is left out.")
        return None
