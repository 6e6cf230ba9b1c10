"""Recomputes one generation from the config and its stored parents, and compares digests."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import context, runner
from selfloop_jax.runtime import environment, log, multihost, store
from selfloop_jax.runtime.workdir import (
    NOT_IN_DIGEST,
    check_config,
    check_inputs,
    generation_dir,
    manifest_difference,
    records,
)


def replay(config: configs.Config, workdir: Path, number: int, stop: Callable[[], bool]) -> bool:
    """Whether generation `number` comes out bit for bit as recorded; names the first difference.

    The generation's own artifacts are not needed, only its record and its parents. On other
    versions or another device the bits may differ without damage: then distances are told instead.
    """
    path = generation_dir(workdir, number) / "record.json"
    if not path.exists():
        raise UsageError(f"--replay={number}: {path} is missing; allowed are committed generations")
    check_config(workdir, config.to_dict())
    record = store.read_json(path)
    if len(records(workdir, number)) < number:
        raise UsageError(f"--replay={number}: a generation before it is missing in {workdir}")
    runner.check(config)
    study = context.RunContext(
        config,
        multihost.process_zero_first(lambda: runner.load(config)),
        multihost.agree_on_stop(stop),
    )
    check_inputs(workdir, study.inputs)
    stored = store.read_json(workdir / "manifest.json")[-1]
    changed = manifest_difference(stored, environment.manifest(study.data.facts.get("stand_in")))
    with _scratch(workdir) as scratch:
        gen = context.GenerationRun(study, number, scratch, workdir)
        again = runner.run_generation(gen, exact=not changed)
        difference = first_difference(record, again)
        if difference is None:
            log.say(f"generation {number}: identical")
        elif changed:
            log.say(
                f"generation {number}: made with another {changed}: equal bits are not promised"
            )
            for line in distances(gen, workdir, record, again):
                log.say(line)
        else:
            log.say(f"generation {number}: differs: {path}: {difference}")
    return difference is None


@contextlib.contextmanager
def _scratch(workdir: Path) -> Iterator[Path]:
    """A folder for what is recomputed, gone afterwards; of several processes one that all of them see."""
    if jax.process_count() == 1:
        with tempfile.TemporaryDirectory(prefix="selfloop_replay_") as folder:
            yield Path(folder)
        return
    folder = workdir / ".replay"
    if store.leading:
        shutil.rmtree(folder, ignore_errors=True)
    multihost.barrier()
    yield folder
    multihost.barrier()
    if store.leading:
        shutil.rmtree(folder)


def first_difference(record: store.Json, again: store.Json) -> str | None:
    """The first artifact, in the order of the phases, or field that differs between the two records."""
    recorded = record.get("digests", {})
    for name, digest in again["digests"].items():
        if recorded.get(name) != digest:
            return f"{name}: recorded {recorded.get(name)}, recomputed {digest}"
    fields = [name for name in again if name not in NOT_IN_DIGEST]
    return next(
        (f"{name}: not the recomputed value" for name in fields if record.get(name) != again[name]),
        None,
    )


def distances(
    gen: context.GenerationRun, workdir: Path, record: store.Json, again: store.Json
) -> list[str]:
    """How far the recomputed generation is from the recorded one, as far as its artifacts are stored."""
    lines = []
    stored = context.GenerationRun(gen.study, gen.number, workdir, workdir, gen.entries)
    for name in gen.study.networks.trainers:
        checkpoints = stored.checkpoints(gen.number, name)
        if checkpoints.steps():
            old = checkpoints.newest(gen.study.networks.trainers[name].abstract)
            new = gen.trained(gen.number, name)
            lines.append(
                f"{name}: weights differ by {_relative(old.ema_params, new['params']):.2e} (L2)"
            )
    for name, was in record["metrics"].items():
        now = again["metrics"][name]
        if was is not None and now is not None and was != now:
            lines.append(f"{name}: {was:.4f} recorded, {now:.4f} recomputed")
    return lines


def _relative(old: Any, new: Any) -> float:
    """The largest relative L2 distance over the leaves of the weights."""
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    norm = np.linalg.norm
    return max(
        float(norm(a - b) / max(norm(a), 1e-12))
        for a, b in ((np.asarray(x), np.asarray(y)) for x, y in pairs)
    )
