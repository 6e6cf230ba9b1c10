"""The loop over training steps: data order, resume, preemption and checkpoints."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop_jax.data.images import Images, batch_indices
from selfloop_jax.errors import RunError
from selfloop_jax.runtime import keys, log, multihost, parallel, rng
from selfloop_jax.training.checkpoints import Checkpoints, Saver
from selfloop_jax.training.step import Trainer, TrainState, Variables

# Processes agree on a save by time; each exchange has the devices wait, so it is rare.
LATE_MEETING_SECONDS = 30.0


class Preempted(Exception):
    """The run was asked to end (SIGTERM) and its progress is on disk."""


@dataclass(frozen=True)
class Job:
    """One network to train: on what, from where, for how long, and where its progress goes.

    columns: equally long host arrays [N,...] that the loss reads (pixels, label, group, ...).
    weights: what training starts from; None: the trainer's initial ones, keyed by `key_path`.
    steps, learning_rate: optimizer steps and peak rate. key_path: of data order and noise.
    capacity: rows that the columns are padded to on the devices, so that pools of other sizes run
    the same program. placement: "device", or "host" for columns too large for a device.
    """

    trainer: Trainer
    columns: Mapping[str, np.ndarray]
    weights: Variables | None
    steps: int
    learning_rate: float
    key_path: rng.KeyPath
    capacity: int
    placement: str
    checkpoints: Checkpoints
    progress: log.Progress
    stop: Callable[[], bool]

    def start(self) -> TrainState:
        """The state at step 0."""
        weights = self.weights
        if weights is None:
            weights = self.trainer.init(keys.key((*self.key_path, "init")))
        return self.trainer.start(weights, float(self.learning_rate), float(self.steps))


@dataclass(frozen=True)
class Fitted:
    """A trained network: the digest of its last checkpoint, its state, and the training speed."""

    digest: str
    state: TrainState
    images_per_second: float


def training_columns(images: Images) -> dict[str, np.ndarray]:
    """What the losses of generator and classifier read: pixels uint8, label and group int32."""
    return {"pixels": images.pixels, "label": images.label, "group": images.group}


def put_on_devices(
    columns: Mapping[str, np.ndarray], capacity: int, placement: str
) -> dict[str, Any]:
    """Columns as training reads them: on every device, padded to `capacity`, or on the host."""
    if placement == "host":
        return dict(columns)
    padded = {}
    for name, array in columns.items():
        # Pools grow over generations; arrays of one size need one compiled program.
        padding = np.zeros((capacity - len(array), *array.shape[1:]), array.dtype)
        padded[name] = np.concatenate([array, padding])
    return parallel.replicate(padded)


def fit(jobs: Sequence[Job]) -> list[Fitted]:
    """Trains every job to its last step, one after the other.

    A job resumes from its newest checkpoint. It saves every `checkpoints.interval` steps, or after
    `checkpoints.minutes` where that comes first, and at the end; when `stop()` is true it saves and
    raises Preempted. Data order and keys follow from the key path and the step alone. Raises
    RunError on a loss that is not finite, and on devices whose states differ (compared bit for bit
    after the first step and at every checkpoint).
    """
    return [_fit(job) for job in jobs]


def _fit(job: Job) -> Fitted:
    trainer = job.trainer
    checkpoints = job.checkpoints
    progress = job.progress
    per_dispatch = trainer.steps_per_dispatch
    state = _resumed(trainer, checkpoints) or job.start()
    first = int(state.step)
    # Indices stay below `size`: the padding is never trained on.
    size = len(next(iter(job.columns.values())))
    arrays = put_on_devices(job.columns, job.capacity, job.placement)
    # One key for the phase; the program folds the step into it.
    noise_key = parallel.replicate(keys.key((*job.key_path, "noise")))
    # Too many computations in flight can deadlock a CPU device.
    in_flight: deque[Any] = deque()
    saved = time.monotonic()
    late = multihost.agree(
        lambda: time.monotonic() - saved > 60 * checkpoints.minutes, LATE_MEETING_SECONDS
    )
    progress.begin(first, job.steps, trainer.batch)
    with Saver(checkpoints) as saver:
        for step in range(first, job.steps, per_dispatch):
            steps = range(step, step + per_dispatch)
            order = (*job.key_path, "order")
            index = np.stack([batch_indices(order, size, trainer.batch, s) for s in steps])
            if job.placement == "device":
                # Only the indices travel: the program gathers the batch on the device.
                rows = {"index": index}
                on_device = arrays
            else:
                rows = {name: array[index] for name, array in arrays.items()}
                on_device = {}
            state, metrics = trainer.program(
                state, on_device, parallel.shard_steps(rows), noise_key
            )
            parallel.limit_in_flight(in_flight, metrics, per_dispatch)
            done = step + per_dispatch
            progress.record(done, metrics)
            # Asked once per dispatch: all processes must ask equally often to agree.
            stopping = job.stop()
            saving = late() or stopping or done % checkpoints.interval == 0 or done >= job.steps
            where = f"{progress.where}, step {done}"
            if step == first:
                # A forgotten mean over devices shows after one step, before hours are spent.
                parallel.check_replicas(state, where)
            if saving:
                # Reads the outstanding losses first: one that is not finite raises, unsaved.
                progress.flush()
                parallel.check_replicas(state, where)
                saver.save(done, state, where)
                saved = time.monotonic()
            if stopping and done < job.steps:
                saver.wait()
                raise Preempted(where)
        saver.wait()
    progress.end()
    return Fitted(checkpoints.digest(job.steps), state, progress.rate)


def _resumed(trainer: Trainer, checkpoints: Checkpoints) -> TrainState | None:
    """The newest state, on the devices; None without a checkpoint.

    RunError where its step is not a multiple of this platform's steps per dispatch.
    """
    saved = checkpoints.newest(trainer.abstract)
    if saved is None:
        return None
    if saved.step % trainer.steps_per_dispatch:
        raise RunError(
            f"{checkpoints.directory}: stopped at step {saved.step}, but this platform dispatches "
            f"{trainer.steps_per_dispatch} steps at a time: remove the folder to train it again"
        )
    return parallel.replicate(saved)
