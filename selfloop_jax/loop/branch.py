"""What a run takes from another: generation 0, so that the arms of a study share it, or the drawn images that
a control puts real ones in the place of. Both must come from a run that is the same in all that
counts.
"""

import os
import shutil
from pathlib import Path

from selfloop_jax import config as configs
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import context
from selfloop_jax.runtime import log, store
from selfloop_jax.runtime.workdir import (
    MAY_CHANGE,
    check_inputs,
    generation_dir,
    manifest_difference,
)

# Fields that say nothing of what a run makes of a generation, by how their names begin.
MAY_DIFFER = ("loop.generations", "loop.branch_from", "loop.control", "verdict.", "checkpoint.")


# Fields that generation 0 does not read. What a pool rule makes of it is compared by the pool's
# digest.
NOT_READ_BY_GENERATION_0 = ("pool.", "diffusion.later.", "classifier.later.")


def check(study: context.RunContext, manifest: store.Json, accept_manifest: bool) -> None:
    """Raises UsageError or RunError where generation 0 of `loop.branch_from` cannot be taken over.

    UsageError: it is not finished, was made with another config, by another pool rule, or without
    `accept_manifest` on another manifest. RunError: real images or artifacts are not what was
    recorded.
    """
    home = _home(study.config)
    path = generation_dir(home, 0) / "record.json"
    if not path.exists():
        raise UsageError(f"loop.branch_from = {home}: allowed are runs with a finished gen_0000")
    digests = store.read_json(path).get("digests", {})
    if "diffusion" not in digests:
        raise UsageError(f"loop.branch_from = {home}: allowed are runs that trained a generator")
    same_config(study.config, home, "loop.branch_from", NOT_READ_BY_GENERATION_0)
    changed = manifest_difference(store.read_json(home / "manifest.json")[-1], manifest)
    if changed and not accept_manifest:
        raise UsageError(
            f"loop.branch_from = {home}: made with another {changed}; pass --accept_manifest to take it "
            "over, marked as not exact"
        )
    check_inputs(home, study.inputs)
    _verify(context.GenerationRun(study, 0, home, home), digests)


def check_control_of(config: configs.Config) -> None:
    """Raises UsageError where the run that a control belongs to is not its own but for the control."""
    if config.loop.control_of:
        home = Path(config.loop.control_of).expanduser()
        if not (home / "config.json").exists():
            raise UsageError(f"loop.control_of = {home}: allowed are folders of runs")
        same_config(config, home, "loop.control_of", ())


def same_config(config: configs.Config, home: Path, field: str, free: tuple[str, ...]) -> None:
    """Raises UsageError naming the first field in which the run in `home` differs and must not."""
    stored = store.flatten(store.read_json(home / "config.json"))
    ours = store.flatten(config.to_dict())
    for name in sorted(stored.keys() | ours.keys()):
        if stored.get(name) != ours.get(name) and not name.startswith(
            (*MAY_DIFFER, *MAY_CHANGE, *free)
        ):
            raise UsageError(
                f"{name} = {ours.get(name)}: the run of {field} = {home} has {stored.get(name)}; allowed is "
                "the same value"
            )


def take(config: configs.Config, workdir: Path) -> None:
    """Copies the generation into `workdir`, all of it or nothing; `check` has verified it."""
    home, target = _home(config), generation_dir(workdir, 0)
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(generation_dir(home, 0), temporary)
    shutil.rmtree(target, ignore_errors=True)  # without a record, so nothing finished
    os.replace(temporary, target)
    log.say(f"generation 0: taken over from {home}")


def take_manifest(config: configs.Config, workdir: Path) -> None:
    """A run begins with the manifest of its generation 0, so that a change of it counts as one of its own."""
    if not (workdir / "manifest.json").exists():
        store.write_json(
            workdir / "manifest.json", store.read_json(_home(config) / "manifest.json")
        )


def _verify(source: context.GenerationRun, digests: dict[str, str]) -> None:
    if context.pool_digest(source.pool) != digests["pool"]:
        raise UsageError(
            f"pool.rule = {source.study.config.pool.rule}: its generation 0 is not that of "
            f"loop.branch_from = {source.home}"
        )
    source.entries = {"record": {"digests": digests}}
    for name, digest in digests.items():
        if name.endswith(".npz"):
            store.read_npz(source.folder / name, digest)
        elif name not in ("pool", "pixels"):  # which are not stored
            source.trained(0, name)


def _home(config: configs.Config) -> Path:
    return Path(config.loop.branch_from).expanduser()
