"""Takes over generation 0 of another run, so that the arms of a study share it.

Everything that generation 0 is made from must be the same: seed, config, real images, initial weights,
versions and devices, and all artifacts must be whole. What only later generations read may differ.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from selfloop_jax import log, phases, store
from selfloop_jax.errors import UsageError

# Fields that generation 0 does not read, by how their names begin. What a pool rule makes of generation 0 is
# compared by the pool's digest.
LATER = (
    *("loop.generations", "loop.generation_zero", "loop.control", "loop.control_of", "pool."),
    *("diffusion.later.", "classifier.later.", "verdict.", "checkpoint.", *store.FREE_SECTIONS),
)


def check(config: Any, manifest: store.Json, accept_manifest: bool) -> bool:
    """Whether what `loop.generation_zero` names was made with the same versions and devices.

    Raises UsageError where it is no finished generation 0 or was made with another config, or without
    `accept_manifest` with another manifest.
    """
    home = _home(config)
    path = store.generation_dir(home, 0) / "record.json"
    if not path.exists():
        raise UsageError(f"loop.generation_zero = {home}: allowed are runs with a finished gen_0000")
    if "diffusion" not in store.read_json(path).get("digests", {}):
        raise UsageError(f"loop.generation_zero = {home}: allowed are runs that trained a generator")
    stored = store.flatten(store.read_json(home / "config.json"))
    ours = store.flatten(json.loads(json.dumps(config.to_dict())))
    for field in sorted(stored.keys() | ours.keys()):
        if stored.get(field) != ours.get(field) and not field.startswith(LATER):
            raise UsageError(
                f"{field} = {ours.get(field)}: the generation 0 of loop.generation_zero = {home} has "
                f"{stored.get(field)}; allowed is the same value"
            )
    changed = store.manifest_difference(store.read_json(home / "manifest.json")[-1], manifest)
    if changed and not accept_manifest:
        raise UsageError(
            f"loop.generation_zero = {home}: made with another {changed}; pass --accept_manifest to take it "
            "over, marked as not exact"
        )
    return not changed


def take(study: phases.Study, workdir: Path) -> None:
    """Copies the generation into `workdir`, all of it or nothing, after verifying it.

    Raises RunError where real images or artifacts are not what was recorded, UsageError where the pool rule
    makes another generation 0 of the same images.
    """
    home, target = _home(study.config), store.generation_dir(workdir, 0)
    store.check_inputs(home, study.inputs)
    source = phases.Generation(study, 0, home, home)
    record = store.read_json(source.folder / "record.json")
    _verify(source, record["digests"])
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source.folder, temporary)
    shutil.rmtree(target, ignore_errors=True)  # without a record, so nothing finished
    os.replace(temporary, target)
    log.say(f"generation 0: taken over from {home}")


def _verify(source: phases.Generation, digests: dict[str, str]) -> None:
    if phases.pool_digest(source.pool) != digests["pool"]:
        raise UsageError(
            f"pool.rule = {source.study.config.pool.rule}: its generation 0 is not that of "
            f"loop.generation_zero = {source.home}"
        )
    source.entries = {"record": {"digests": digests}}
    for name, digest in digests.items():
        path = source.folder / name
        if path.suffix == ".npz":
            store.read_npz(path, digest)
        elif path.is_dir():
            source.trained(0, name)


def _home(config: Any) -> Path:
    return Path(config.loop.generation_zero).expanduser()
