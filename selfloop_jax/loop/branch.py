"""Starting from generation 0 of another run, so that the arms of a study share it."""

from pathlib import Path

from selfloop_jax.config import Config
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import other_run
from selfloop_jax.loop.context import Artifacts, GenerationRun, RunContext, pool_digest
from selfloop_jax.runtime import store
from selfloop_jax.runtime.workdir import check_inputs, generation_dir, manifest_difference

# Fields that generation 0 does not read. What a pool rule makes of it is compared by the digest of
# the pool.
NOT_READ_BY_GENERATION_0 = ("pool.", "diffusion.later.", "classifier.later.")
NOT_STORED = ("pool", "pixels", "requested")  # digests of what can be recomputed or is in samples


def source_of(config: Config) -> Path | None:
    """The workdir that `loop.branch_from` names, or None."""
    return Path(config.loop.branch_from).expanduser() if config.loop.branch_from else None


def check(context: RunContext, manifest: store.Json, accept_manifest: bool) -> None:
    """Raises UsageError or RunError where the run cannot start from `loop.branch_from`.

    UsageError: its generation 0 is not finished, was made by an earlier version, with another
    config, by another pool rule, or without `accept_manifest` on another manifest. RunError: real
    images or artifacts are not those recorded.
    """
    source = source_of(context.config)
    assert source is not None
    field = f"loop.branch_from = {source}"
    path = generation_dir(source, 0) / "record.json"
    if not path.exists():
        raise UsageError(f"{field}: must be a run with a finished gen_0000")
    other_run.check(context.config, source, "loop.branch_from", NOT_READ_BY_GENERATION_0)
    digests = store.read_json(path).get("digests", {})
    if "diffusion" not in digests:
        raise UsageError(f"{field}: must be a run that trained a generator")
    # A run that accepted changes has several manifests; the newest is last.
    changed = manifest_difference(store.read_json(source / "manifest.json")[-1], manifest)
    if changed and not accept_manifest:
        raise UsageError(
            f"{field}: made with another {changed}; pass --accept_manifest to start from it, "
            "marked as not exact"
        )
    check_inputs(source, context.inputs)
    # Built from the other run's folder by this run's rule.
    if pool_digest(GenerationRun(context, 0, source, source).pool) != digests["pool"]:
        raise UsageError(
            f"pool.rule = {context.config.pool.rule}: its generation 0 is not that of "
            f"loop.branch_from = {source}"
        )
    _verify(Artifacts(context, 0, source, digests.__getitem__), digests)


def _verify(artifacts: Artifacts, digests: dict[str, str]) -> None:
    """Raises RunError unless every stored artifact has its digest."""
    for name, digest in digests.items():
        if name.endswith(".npz"):
            store.read_npz(artifacts.folder / name, digest)
        elif name not in NOT_STORED:
            artifacts.weights(name)
