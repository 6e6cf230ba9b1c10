"""Which real images a control trains on in place of generated ones, and the run it belongs to."""

from pathlib import Path

from selfloop_jax.config import Config
from selfloop_jax.data import controls, pool_rules
from selfloop_jax.data.controls import GeneratedSet
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.images import Images
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import other_run
from selfloop_jax.loop.samples import read_samples
from selfloop_jax.runtime import rng, store
from selfloop_jax.runtime.workdir import generation_dir


def check(config: Config, data: Dataset) -> None:
    """Raises UsageError where the control's run does not fit, or held-out images are too few."""
    _check_run(config)
    last = config.loop.generations - 1
    # Pools that grow contain the sets of all pools before them: then the last one decides.
    grows = pool_rules.source_generations(config.pool, last).start == 0
    # Only its errors count here: nothing is read for a record.
    for generation in range(last if grows else 1, last + 1):
        control_sets(config, data, pool_rules.source_generations(config.pool, generation), {})


def _check_run(config: Config) -> None:
    """Raises UsageError where the run of `loop.control_of` differs in more than its control."""
    if not config.loop.control_of:
        return
    source = Path(config.loop.control_of).expanduser()
    if not (source / "config.json").exists():
        raise UsageError(f"loop.control_of = {source}: must be the workdir of a run")
    other_run.check(config, source, "loop.control_of")


def control_sets(
    config: Config, data: Dataset, earlier: range, inputs_read: dict[str, str]
) -> list[Images] | None:
    """Matched real images for the generated sets of `earlier` generations, one set for each.

    None: the control trains on the real training images alone. Notes in inputs_read the digests of
    what it read of the run that the control belongs to. UsageError where held-out images are too
    few.
    """
    kind = config.loop.control
    control = controls.CONTROLS[kind]
    if not control.held_out:
        return None
    if not earlier:
        return []
    real = data.train.counts(len(data.classes), len(data.groups))
    key_path: rng.KeyPath = (config.seed, "control", kind)
    tables = []
    for generation in earlier:
        replaced = None
        if control.of_a_run:
            source = Path(config.loop.control_of).expanduser()
            replaced = _generated(source, generation, inputs_read)
        generated = GeneratedSet(generation, config.sample.count, config.pool, replaced)
        tables.append(control.counts((*key_path, "counts"), real, generated))
    # Pools that grow start with the same images; a pool of the latest set alone has its own.
    if earlier.start:
        key_path = (*key_path, earlier.start)
    return controls.matched_real_sets(key_path, data.control_pool, tables, f"loop.control = {kind}")


def _generated(source: Path, generation: int, inputs_read: dict[str, str]) -> Images:
    """What another run generated, verified."""
    path = generation_dir(source, generation) / "record.json"
    if not path.exists():
        raise UsageError(
            f"loop.control_of = {source}: must be a run with a finished {path.parent.name}"
        )
    digest = store.read_json(path).get("digests", {}).get("samples.npz")
    if digest is None:
        raise UsageError(f"loop.control_of = {source}: must be a run that generated images")
    inputs_read[f"control_of/{path.parent.name}/samples.npz"] = digest
    return read_samples(source, generation, digest)
