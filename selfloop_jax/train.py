"""Training of any network: state, step, checkpoints, and the loop over steps."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from orbax.checkpoint import v1 as ocp

from selfloop_jax import log, parallel, rng, store
from selfloop_jax.data import images
from selfloop_jax.errors import RunError

# loss(params, batch_stats, batch, key) -> (loss [], (batch_stats, metrics {name: []}))
Loss = Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]
Variables = dict[str, Any]  # what a network computes with: params, batch_stats
Trainable = Callable[[Any], Any]  # params -> a bool per leaf


@struct.dataclass
class TrainState:
    """All that training carries from step to step; arrays only."""

    step: jax.Array
    params: Any
    ema_params: Any
    batch_stats: Any
    opt_state: Any


class Stopped(Exception):
    """The run was asked to end (SIGTERM) and its progress is on disk."""


def everything(params: Any) -> Any:
    """All leaves are trained."""
    return jax.tree.map(lambda _: True, params)


def optimizer(section: Any, trainable: Trainable = everything) -> optax.GradientTransformation:
    """AdamW with clipping, linear warm-up and cosine decay to 0.

    Peak learning rate and total steps live in the optimizer's state, so that phases of other lengths run the
    same compiled step. Weight decay leaves vectors (norms, biases) alone. What is not trained has no moments.
    """

    def build(learning_rate, total_steps):
        def schedule(count):
            warm = jnp.minimum(1.0, (count + 1) / section.warmup_steps)
            return learning_rate * warm * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / total_steps, 1.0)))

        chain = optax.chain(
            optax.clip_by_global_norm(section.clip_norm),
            optax.adamw(
                schedule,
                b2=section.adam_b2,
                weight_decay=section.weight_decay,
                mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
            ),
        )
        return chain if trainable is everything else optax.masked(chain, trainable)

    return optax.inject_hyperparams(build)(learning_rate=0.0, total_steps=1.0)


def make_step(
    loss: Loss, tx: optax.GradientTransformation, ema_decay: float, trainable: Trainable = everything
) -> Callable:
    """The step `(state, batch, key) -> (state, metrics)`; gradients and metrics are means over all devices.

    The average of weights warms up: its decay is min(ema_decay, (1 + step) / (10 + step)). What is not
    trained keeps its bits, in the average too.
    """

    def chosen(trained, held):
        return jax.tree.map(lambda wanted, a, b: a if wanted else b, trainable(trained), trained, held)

    def held_loss(params, *rest):
        return loss(chosen(params, jax.lax.stop_gradient(params)), *rest)

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        gradient = jax.value_and_grad(held_loss, has_aux=True)
        (value, (stats, metrics)), grads = gradient(state.params, state.batch_stats, batch, key)
        grads, metrics = jax.lax.pmean((grads, {"loss": value, **metrics}), parallel.AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = chosen(optax.apply_updates(state.params, updates), state.params)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step)) if ema_decay else 0.0
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema_params, params)
        ema = chosen(ema, state.ema_params)
        return TrainState(state.step + 1, params, ema, stats, opt_state), metrics

    return step


@dataclass(frozen=True)
class Trainer:
    """One kind of network, compiled once per run and trained many times."""

    init: Callable[[jax.Array], Variables]  # key -> random ones
    start: Callable[[Variables, float, float], TrainState]  # from where, learning rate, steps -> step 0
    program: Callable
    abstract: TrainState
    batch: int
    steps_per_dispatch: int

    @property
    def parameters(self) -> int:
        """Number of scalars in the network, trained or held."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))


def make_trainer(
    init: Callable[[jax.Array], Any],
    loss: Loss,
    section: Any,
    steps_per_dispatch: int,
    trainable: Trainable = everything,
) -> Trainer:
    """`init(key)` gives a network's variables: `params` and perhaps `batch_stats`."""
    tx = optimizer(section, trainable)

    def new(key):
        return {"batch_stats": {}, **init(key)}

    def start(variables, learning_rate, steps):
        return _start(tx, variables, learning_rate, steps)

    place = parallel.replicated()
    return Trainer(
        init=jax.jit(new, out_shardings=place),
        start=jax.jit(start, out_shardings=place),
        program=parallel.train_program(make_step(loss, tx, section.ema_decay, trainable)),
        abstract=jax.eval_shape(lambda key: start(new(key), 0.0, 1.0), jax.random.key(0)),
        batch=section.batch,
        steps_per_dispatch=steps_per_dispatch,
    )


def _start(tx, variables, learning_rate, steps) -> TrainState:
    """Step 0 from given weights, the average starting on them; copies, since training donates its state."""
    params, ema, stats = (
        jax.tree.map(jnp.copy, variables[name]) for name in ("params", "params", "batch_stats")
    )
    opt_state = tx.init(params)
    hyper = {"learning_rate": learning_rate, "total_steps": steps}
    hyper = {name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()}
    opt_state = opt_state._replace(hyperparams={**opt_state.hyperparams, **hyper})
    return TrainState(jnp.zeros((), jnp.int32), params, ema, stats, opt_state)


def averaged(state: TrainState) -> Variables:
    """What a trained network is used with: its averaged weights."""
    return {"params": state.ema_params, "batch_stats": state.batch_stats}


def place_pool(pool: images.Images, capacity: int, placement: str) -> dict[str, Any]:
    """The pool as training reads it: on the devices, padded to `capacity`, or left on the host.

    uint8 pixels, int32 label and group. All pools of a run share one capacity, so nothing recompiles.
    """
    arrays = {"pixels": pool.pixels, "label": pool.label, "group": pool.group}
    if placement == "host":
        return arrays
    padding = capacity - len(pool)
    padded = {
        name: np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)]) for name, x in arrays.items()
    }
    return parallel.replicate(padded)


def fit(
    trainer: Trainer,
    start: Callable[[], TrainState],
    pool: images.Images,
    capacity: int,
    placement: str,
    address: rng.Address,
    steps: int,
    checkpoints: "Checkpoints",
    progress: log.Progress,
    stop: Callable[[], bool],
) -> tuple[str, TrainState]:
    """Trains to `steps` from the newest checkpoint, else from `start()`; the final digest and state.

    Saves every `checkpoints.interval` steps and at the end; on `stop()` saves and raises Stopped. The data
    order and every key follow from `address` and the step alone. Raises RunError on a loss that is not finite
    and on devices that disagree (compared bit for bit after the first step and at every checkpoint).
    """
    state = _resumed(trainer, checkpoints) or start()
    first = int(state.step)
    arrays = place_pool(pool, capacity, placement)
    key = parallel.replicate(rng.key((*address, "noise")))
    under_way: deque[Any] = deque()
    progress.begin(first, steps, trainer.batch)
    for step in range(first, steps, trainer.steps_per_dispatch):
        index = np.stack(
            [
                images.batch_at((*address, "order"), len(pool), trainer.batch, step + k)
                for k in range(trainer.steps_per_dispatch)
            ]
        )
        if placement == "device":
            rows, on_device = {"index": index}, arrays
        else:
            rows, on_device = {name: array[index] for name, array in arrays.items()}, {}
        state, metrics = trainer.program(state, on_device, parallel.split_steps(rows), key)
        parallel.throttle(under_way, metrics, trainer.steps_per_dispatch)
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
            raise Stopped(where)
    progress.end()
    return checkpoints.digest(steps), state


def _resumed(trainer: Trainer, checkpoints: "Checkpoints") -> TrainState | None:
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


def _save(checkpoints: "Checkpoints", step: int, state: TrainState, where: str) -> None:
    """Saves a copy on the host, gone on return: on a CPU it would keep the state from being donated."""
    on_host = jax.device_get(state)
    check_finite(on_host, where)
    checkpoints.save(step, on_host)


def check_finite(state: TrainState, where: str) -> None:
    """Raises RunError unless all weights are finite: the loss of the last step is older than its update."""
    weights = (state.params, state.ema_params, state.batch_stats)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(weights)):
        raise RunError(f"{where}: weights are not finite")


class Checkpoints:
    """The checkpoints of one training phase: `<directory>/<step>/` by Orbax, `<step>.json` its digest."""

    def __init__(self, directory: Path, interval: int, keep: int):
        self.directory = directory.absolute()  # Orbax takes no other
        self.interval = interval
        self.keep = keep

    def save(self, step: int, state: TrainState) -> None:
        """Writes the digest, then the checkpoint; the step exists once Orbax has renamed it.

        Of host arrays: all devices hold the same, and Orbax takes less than half the time for them.
        """
        path = self.directory / str(step)
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
        except Exception as error:  # What the file system refuses reaches us as tensorstore's ValueError.
            raise RunError(f"{path}: not saved: {_first_line(error)}") from error
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


def state_digest(state: TrainState) -> str:
    """sha256 over sorted (path, dtype, shape, bytes)."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return store.digest_arrays({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def _on_host(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """A host array of the leaf's shape and dtype that takes no memory, for Orbax to know them by."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
