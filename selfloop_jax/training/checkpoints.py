"""Checkpoints of one training phase by Orbax, each with its own sha256 digest."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from selfloop_jax.config import Config
from selfloop_jax.errors import RunError
from selfloop_jax.runtime import parallel, store
from selfloop_jax.training.step import Trainer, TrainState, Variables, ema_variables


class Checkpoints:
    """The checkpoints of a training phase: `<directory>/<step>/` by Orbax, its digest in a .json.

    Orbax restores a flipped data byte silently, so every load compares a digest of our own.
    """

    def __init__(self, directory: Path, interval: int, keep: int):
        self.directory = directory.absolute()  # Orbax takes absolute paths only
        self.interval = interval
        self.keep = keep

    def save(self, step: int, state: TrainState) -> None:
        """Writes the digest, then the checkpoint; the step exists once Orbax has renamed it.

        state holds host arrays: all devices hold the same bits, and Orbax takes less than half the
        time for host arrays.
        """
        path = self.directory / str(step)
        # Orbax does not write an existing step: it returns False without an error.
        if path.exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        store.check_space(path, 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        store.write_json(self._digest_path(step), {"step": step, "sha256": state_digest(state)})
        policy = ocp.training.preservation_policies.LatestN(self.keep)
        try:
            with ocp.training.Checkpointer(
                self.directory, preservation_policy=policy, cleanup_tmp_directories=True
            ) as checkpointer:
                checkpointer.save(step, state, force=True)
        except Exception as error:  # a full or read-only disk arrives as tensorstore's ValueError
            raise RunError(f"{path}: not saved: {_first_line(error)}") from error
        # Orbax has deleted older steps; their digests go too.
        for path in self.directory.glob("*.json"):
            if store.leading and path.stem.isdigit() and int(path.stem) not in self.steps():
                path.unlink()

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        names = [path.name for path in self.directory.glob("*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdigit())

    def newest(self, abstract: TrainState) -> TrainState | None:
        """The last state saved, verified, or None."""
        steps = self.steps()
        return self.load(steps[-1], abstract) if steps else None

    def load(self, step: int, abstract: TrainState, expected: str | None = None) -> TrainState:
        """One state in host arrays, its digest compared with the saved one and `expected`.

        RunError names a damaged checkpoint.
        """
        path = self.directory / str(step)
        try:
            state = ocp.load(path, jax.tree.map(_on_host, abstract))
        except Exception as error:  # Orbax and tensorstore raise many kinds on damaged files.
            raise RunError(f"{path}: damaged checkpoint: {_first_line(error)}") from error
        found = state_digest(state)
        if found != self.digest(step) or found != (expected or found):
            raise RunError(f"{path}: damaged checkpoint: its digest is not the recorded one")
        return state

    def digest(self, step: int) -> str:
        """The digest recorded for a step."""
        return store.read_json(self._digest_path(step))["sha256"]

    def _digest_path(self, step: int) -> Path:
        return self.directory / f"{step}.json"


class Saver:
    """Saves states in a thread while training continues, one at a time.

    With several processes training waits: Orbax has them all wait for each other, by programs of
    their devices, which would mix with the training's.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for a save under way, without a word of its errors: `wait` raises them."""
        self._thread.shutdown()

    def save(self, step: int, state: TrainState, where: str) -> None:
        """Returns once a copy of the state is on the host; raises what `wait` does."""
        self.wait()
        copy = on_host(state)
        if jax.process_count() > 1:
            self._save(step, copy, where)
        else:
            self._saving = self._thread.submit(self._save, step, copy, where)

    def _save(self, step: int, state: TrainState, where: str) -> None:
        check_finite(state, where)
        self._checkpoints.save(step, state)

    def wait(self) -> None:
        """Waits for the last save; RunError where it failed."""
        if self._saving:
            saving, self._saving = self._saving, None
            saving.result()


def on_host(state: TrainState) -> TrainState:
    """A copy of the state in host arrays that no later step touches."""
    found: TrainState = jax.device_get(state)
    # On a CPU these are the devices' own memory, which the next step takes for its result.
    return jax.tree.map(np.array, found) if jax.default_backend() == "cpu" else found


def check_finite(state: TrainState, where: str) -> None:
    """Raises RunError unless all weights are finite.

    The loss that was checked last is older than the last update.
    """
    weights = (state.params, state.ema_params, state.batch_stats, state.ema_batch_stats)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(weights)):
        raise RunError(f"{where}: weights are not finite")


def load_weights(
    config: Config, folder: Path, steps: int, trainer: Trainer, digest: str
) -> Variables:
    """The averaged weights that a training phase ended with, on the devices.

    folder: the phase's checkpoints. trainer: of its network; it gives the shapes. RunError where
    the checkpoint after `steps` is missing, damaged, or not the one of the recorded digest.
    """
    section = config.checkpoint
    checkpoints = Checkpoints(folder, section.interval_steps, section.keep)
    state = checkpoints.load(steps, trainer.abstract, digest)
    return parallel.replicate(ema_variables(state))


def saved_weights(directory: Path) -> Any:
    """The EMA weights of the newest checkpoint in a folder, host arrays; not verified."""
    newest = max(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    return ocp.load((directory / str(newest)).absolute())["ema_params"]


def state_digest(state: TrainState) -> str:
    """sha256 over sorted (path, dtype, shape, bytes)."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return store.digest_arrays(
        {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    )


def _on_host(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """A host array of the leaf's shape and dtype that takes no memory: what Orbax restores to."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
