"""The loop over training steps: data order, resume, stop, checkpoints."""

from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from selfloop_jax.data import images
from selfloop_jax.errors import RunError
from selfloop_jax.runtime import keys, log, parallel, rng
from selfloop_jax.training.checkpoints import Checkpoints
from selfloop_jax.training.step import Trainer, TrainState


class Preempted(Exception):
    """The run was asked to end (SIGTERM) and its progress is on disk."""


def put_on_devices(pool: images.Images, capacity: int, placement: str) -> dict[str, Any]:
    """The pool as training reads it: on the devices, padded to `capacity`, or left on the host.

    uint8 pixels, int32 label and group. All pools of a run share one capacity, so nothing
    recompiles.
    """
    arrays = {"pixels": pool.pixels, "label": pool.label, "group": pool.group}
    if placement == "host":
        return arrays
    padding = capacity - len(pool)
    padded = {
        name: np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
        for name, x in arrays.items()
    }
    return parallel.replicate(padded)


def fit(
    trainer: Trainer,
    start: Callable[[], TrainState],
    pool: images.Images,
    capacity: int,
    placement: str,
    address: rng.KeyPath,
    steps: int,
    checkpoints: Checkpoints,
    progress: log.Progress,
    stop: Callable[[], bool],
) -> tuple[str, TrainState]:
    """Trains to `steps` from the newest checkpoint, else from `start()`; the final digest and state.

    Saves every `checkpoints.interval` steps and at the end; on `stop()` saves and raises Stopped.
    The data order and every key follow from `address` and the step alone. Raises RunError on a loss
    that is not finite and on devices that disagree (compared bit for bit after the first step and
    at every checkpoint).
    """
    state = _resumed(trainer, checkpoints) or start()
    first = int(state.step)
    arrays = put_on_devices(pool, capacity, placement)
    key = parallel.replicate(keys.key((*address, "noise")))
    under_way: deque[Any] = deque()
    progress.begin(first, steps, trainer.batch)
    for step in range(first, steps, trainer.steps_per_dispatch):
        index = np.stack(
            [
                images.batch_indices((*address, "order"), len(pool), trainer.batch, step + k)
                for k in range(trainer.steps_per_dispatch)
            ]
        )
        if placement == "device":
            rows, on_device = {"index": index}, arrays
        else:
            rows, on_device = {name: array[index] for name, array in arrays.items()}, {}
        state, metrics = trainer.program(state, on_device, parallel.shard_steps(rows), key)
        parallel.limit_in_flight(under_way, metrics, trainer.steps_per_dispatch)
        done = step + trainer.steps_per_dispatch
        progress.record(done, metrics)
        stopping = stop()
        where = f"{progress.where}, step {done}"
        if step == first:
            parallel.check_replicas(state, where)
        if stopping or done % checkpoints.interval == 0 or done >= steps:
            progress.flush()
            parallel.check_replicas(state, where)
            _save(checkpoints, done, state, where)
        if stopping and done < steps:
            raise Preempted(where)
    progress.end()
    return checkpoints.digest(steps), state


def _resumed(trainer: Trainer, checkpoints: Checkpoints) -> TrainState | None:
    """The newest state on the devices; RunError where it lies between two dispatches of this platform."""
    saved = checkpoints.newest(trainer.abstract)
    if saved is None:
        return None
    if saved.step % trainer.steps_per_dispatch:
        raise RunError(
            f"{checkpoints.directory}: it stopped at step {saved.step}, and this platform makes "
            f"{trainer.steps_per_dispatch} steps at a time: remove the folder to begin the phase again"
        )
    return parallel.replicate(saved)


def _save(checkpoints: Checkpoints, step: int, state: TrainState, where: str) -> None:
    """Saves a copy on the host, gone on return: on a CPU it would keep the state from being donated."""
    on_host = jax.device_get(state)
    check_finite(on_host, where)
    checkpoints.save(step, on_host)


def check_finite(state: TrainState, where: str) -> None:
    """Raises RunError unless all weights are finite: the loss of the last step is older than its update."""
    weights = (state.params, state.ema_params, state.batch_stats)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(weights)):
        raise RunError(f"{where}: weights are not finite")
