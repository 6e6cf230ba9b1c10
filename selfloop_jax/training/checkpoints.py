"""Checkpoints of one training phase by Orbax, each with its own sha256 digest."""

import functools
import math
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint
from orbax.checkpoint import v1 as ocp

from selfloop_jax.config import Config
from selfloop_jax.errors import RunError
from selfloop_jax.runtime import multihost, parallel, store
from selfloop_jax.training.step import Trainer, TrainState, Variables, ema_variables


class Checkpoints:
    """The checkpoints of a training phase: `<directory>/<step>/` by Orbax, its digest in a .json.

    Orbax restores a flipped data byte silently, so every load compares a digest of our own.
    """

    def __init__(self, directory: Path, interval: int, keep: int, minutes: float = math.inf):
        """interval, minutes: most steps and time between two. keep: checkpoints that stay."""
        self.directory = directory.absolute()  # Orbax takes absolute paths only
        self.interval = interval
        self.minutes = minutes
        self.keep = keep

    def save(self, step: int, state: TrainState) -> None:
        """Writes the digest, then the checkpoint; the step exists once Orbax has renamed it.

        state holds host arrays: all devices hold the same bits, and Orbax takes less than half the
        time for host arrays. Of several processes, process 0 writes, without waiting for others.
        """
        path = self.directory / str(step)
        if not store.leading or path.exists():
            return
        self.directory.mkdir(exist_ok=True)
        store.check_space(path, 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        store.write_json(self._digest_path(step), {"step": step, "sha256": state_digest(state)})
        try:
            _write(path, state)
        except Exception as error:  # a full or read-only disk arrives as tensorstore's ValueError
            raise RunError(f"{path}: not saved: {_first_line(error)}") from error
        self._remove_others(self.steps()[-self.keep :])

    def _remove_others(self, kept: list[int]) -> None:
        """Removes older checkpoints, and what killed saves have left."""
        names = {str(step) for step in kept}
        for path in self.directory.iterdir():
            if path.is_dir() and path.name not in names:
                # By another name first: a kill must not leave half a checkpoint under its own.
                path = path.rename(path.with_name(f"removed-{path.name}"))
                shutil.rmtree(path)
            elif path.suffix == ".json" and path.stem not in names:
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
            state = _read(path, jax.tree.map(_on_host, abstract))
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
    """Saves states in a thread while training continues, one at a time."""

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
        self._saving = self._thread.submit(self._save, step, on_host(state), where)

    def _save(self, step: int, state: TrainState, where: str) -> None:
        check_finite(state, where)
        self._checkpoints.save(step, state)

    def wait(self) -> None:
        """Waits for the last save, on all processes; RunError where it failed."""
        if self._saving:
            saving, self._saving = self._saving, None
            saving.result()
            multihost.barrier()  # the other processes find it on disk


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
    return _read((directory / str(newest)).absolute())["ema_params"]


def state_digest(state: TrainState) -> str:
    """sha256 over sorted (path, dtype, shape, bytes)."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return store.digest_arrays(
        {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    )


# By default Orbax has all processes of a run wait for each other, by programs of their devices.
# Here each one reads by itself, and process 0 writes by itself while the devices are training.


@functools.cache  # once in a process
def _ignore_closed_loops() -> None:
    """Keeps TensorStore from printing tracebacks after an error that is reported anyway.

    Orbax ends at the first array that it cannot write or read, and closes its event loop. Each of
    the others then fails in a thread of TensorStore, which gives the hook what nobody waits for.
    """
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def _write(path: Path, state: TrainState) -> None:
    """A checkpoint by Orbax. Its new interface has the processes compare the path in any case."""
    _ignore_closed_loops()
    me = jax.process_index()
    alone = orbax.checkpoint.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = orbax.checkpoint.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with orbax.checkpoint.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(path, orbax.checkpoint.args.PyTreeSave(state))


def _read(path: Path, abstract: Any = None) -> Any:
    """The tree of host arrays of a checkpoint, in the structure of `abstract` where it is given."""
    _ignore_closed_loops()
    me = ocp.multihost.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    with ocp.Context(multiprocessing_options=alone):
        return ocp.load(path, abstract)


def _on_host(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """A host array of the leaf's shape and dtype that takes no memory: what Orbax restores to."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
