"""Recomputes one generation from the config and its stored parents, and compares digests."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfloop_jax.config import Config
from selfloop_jax.config.stored import check_config
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import runner
from selfloop_jax.loop.stage import Study
from selfloop_jax.runtime import environment, log, multihost, store, workdir
from selfloop_jax.runtime.workdir import generation_dir
from selfloop_jax.training.checkpoints import saved_weights


def replay(study: Study, config: Config, path: Path, number: int, stop: Callable[[], bool]) -> bool:
    """Whether generation `number` is recomputed bit for bit; names the first difference.

    The generation's own artifacts are not needed, only its record and its parents. On other
    versions or another device the bits may differ without damage: then distances are reported.
    """
    record_path = generation_dir(path, number) / "record.json"
    if not record_path.exists():
        raise UsageError(
            f"--replay={number}: must be a finished generation, but {record_path} is missing"
        )
    workdir.check_version(path, f"--workdir={path}")
    check_config(path, config.to_dict(), study.grows)
    record = store.read_json(record_path)
    if len(workdir.records(path, number)) < number:
        raise UsageError(f"--replay={number}: a generation before it is missing in {path}")
    study.check(config)
    context = study.open(config, multihost.agree(stop))
    workdir.check_inputs(path, context.inputs)
    made_under = workdir.manifest_of(path, record)
    manifest = environment.manifest(context.stand_in)
    changed = workdir.manifest_difference(made_under, manifest)
    with _scratch(path) as scratch:
        # It writes to the scratch folder and reads its parents from the run.
        run = study.stage(context, number, scratch, path)
        # The entry is of no account: how a record was made is not compared.
        again = runner.run_stage(study, run, entry=0)
        difference = first_difference(record, again)
        other_code = workdir.code_difference(made_under, manifest)
        if difference is not None and other_code:
            log.say(f"generation {number}: {other_code}")
        if difference is None:
            log.say(f"generation {number}: identical")
        elif changed:
            log.say(
                f"generation {number}: made with another {changed}: equal bits are not promised"
            )
            for line in distances(study, generation_dir(path, number), run.folder, record, again):
                log.say(line)
        else:
            log.say(f"generation {number}: differs: {record_path}: {difference}")
    return difference is None


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder for what is recomputed, deleted afterwards; shared by the processes of a run."""
    if jax.process_count() == 1:
        with tempfile.TemporaryDirectory(prefix="selfloop_replay_") as folder:
            yield Path(folder)
        return
    # A temporary folder of one machine is not seen by the others.
    shared = path / ".replay"
    # A lock of its own: a run may go on in the workdir meanwhile, another replay may not.
    with workdir.lock(path, ".replay.lock", "replay"):
        if store.leading:
            shutil.rmtree(shared, ignore_errors=True)
            shared.mkdir()
        # Nobody writes before the folder is new, and nobody deletes while others still read.
        multihost.barrier()
        yield shared
        multihost.barrier()
        if store.leading:
            shutil.rmtree(shared)


def first_difference(record: store.Json, again: store.Json) -> str | None:
    """The first artifact, in the order of the phases, or field that differs in the two records."""
    recorded = record.get("digests", {})
    for name, digest in again["digests"].items():
        if recorded.get(name) != digest:
            return f"{name}: recorded {recorded.get(name)}, recomputed {digest}"
    for name in again:
        if name not in workdir.NOT_IN_DIGEST and record.get(name) != again[name]:
            return f"{name}: not the recomputed value"
    return None


def distances(
    study: Study, stored: Path, recomputed: Path, record: store.Json, again: store.Json
) -> list[str]:
    """How far weights and numbers of a recomputed generation are from those recorded."""
    lines = []
    for folder in sorted(stored.iterdir()):
        name = folder.name
        # Networks are folders of checkpoints; all other artifacts are files.
        if name not in again["digests"] or not folder.is_dir():
            continue
        distance = _relative(saved_weights(folder), saved_weights(recomputed / name))
        lines.append(f"{name}: weights differ by {distance:.2e} (L2)")
    recomputed_numbers = study.scalars(again)
    for name, before in study.scalars(record).items():
        after = recomputed_numbers[name]
        if before is not None and after is not None and before != after:
            lines.append(f"{name}: {before:.4f} recorded, {after:.4f} recomputed")
    return lines


def _relative(old: Any, new: Any) -> float:
    """The largest relative L2 distance over the leaves of two trees of weights."""
    largest = 0.0
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        difference = np.asarray(before) - np.asarray(after)
        # A leaf of zeros, such as a new bias, has no scale of its own.
        scale = max(float(np.linalg.norm(before)), 1e-12)
        largest = max(largest, float(np.linalg.norm(difference)) / scale)
    return largest
