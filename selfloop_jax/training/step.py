"""One training step of any network: state, optimizer, EMA, and the pure step function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from selfloop_jax.config import TrainingConfig
from selfloop_jax.runtime import parallel

# loss(params, batch_stats, batch, key) -> (loss [], (batch_stats, metrics {name: []}))
Loss = Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]
Variables = dict[str, Any]  # what a network computes with: params, batch_stats
Trainable = Callable[[Any], Any]  # params -> a bool per leaf


@struct.dataclass
class TrainState:
    """All that training carries from step to step; arrays only.

    ema_batch_stats: of BatchNorm, averaged like the weights that they are used with.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    batch_stats: Any
    ema_batch_stats: Any
    opt_state: Any


def train_all(params: Any) -> Any:
    """All leaves are trained."""
    return jax.tree.map(lambda _: True, params)


def optimizer(
    section: TrainingConfig, trainable: Trainable = train_all
) -> optax.GradientTransformation:
    """AdamW with clipping, linear warm-up and cosine decay to 0.

    Peak learning rate and total steps live in the optimizer's state, so that phases of other
    lengths run the same compiled step. Weight decay leaves vectors (norms, biases) alone. Frozen
    parameters have no optimizer state.
    """

    def build(learning_rate, total_steps):
        def schedule(count):
            # count + 1: a first learning rate of 0 would waste the step.
            warm = jnp.minimum(1.0, (count + 1) / section.warmup_steps)
            done = jnp.minimum(count.astype(jnp.float32) / total_steps, 1.0)
            return learning_rate * warm * 0.5 * (1 + jnp.cos(jnp.pi * done))

        chain = optax.chain(
            optax.clip_by_global_norm(section.clip_norm),
            optax.adamw(
                schedule,
                b2=section.adam_b2,
                weight_decay=section.weight_decay,
                mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
            ),
        )
        # Unmasked where all is trained: a mask adds a level to the tree of every checkpoint.
        return chain if trainable is train_all else optax.masked(chain, trainable)

    return optax.inject_hyperparams(build)(learning_rate=0.0, total_steps=1.0)


def _in_parts(gradient: Callable, parts: int) -> Callable:
    """The same means over a batch, of one part after another, which needs the memory of one part.

    gradient: (params, statistics, batch, key) -> ((loss, (statistics, metrics)), gradients), means
    over the examples; it must leave the statistics as they are.
    """
    if parts == 1:
        return gradient

    def in_parts(params, stats, batch, key):
        rows = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        first = jax.tree.map(lambda x: x[0], rows)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(gradient, params, stats, first, key),
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, stats, part, key)), None

        total, _ = jax.lax.scan(add, zeros, rows)
        (value, (_, metrics)), grads = jax.tree.map(lambda x: x / parts, total)
        return (value, (stats, metrics)), grads

    return in_parts


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    ema_decay: float,
    trainable: Trainable = train_all,
    microbatches: int = 1,
) -> Callable:
    """The step (state, batch, key) -> (state, metrics), with means over all devices.

    microbatches: parts of a device's batch whose gradients are taken one after the other; above 1
    for networks without BatchNorm alone, whose statistics would be those of a part.

    The average of weights warms up: its decay is min(ema_decay, (1 + step) / (10 + step)). The
    running statistics of BatchNorm are averaged with the same decay. Once the learning rate has
    fallen to 0 they are nearer to those of the averaged weights than the raw weights' are; before
    that they lag behind both. Exact ones would take another pass over the training images (Izmailov
    et al. 2018, arXiv 1803.05407, section 3.2). Frozen parameters and statistics keep their bits,
    in the average too.
    """

    def with_frozen(updated, old):
        """The updated leaves where they are trainable, the old ones where they are frozen."""
        return jax.tree.map(
            lambda is_trained, new, frozen: new if is_trained else frozen,
            trainable(updated),
            updated,
            old,
        )

    def loss_of_trainable(params, *rest):
        # No gradient of a frozen leaf is computed.
        return loss(with_frozen(params, jax.lax.stop_gradient(params)), *rest)

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        gradient = _in_parts(jax.value_and_grad(loss_of_trainable, has_aux=True), microbatches)
        (value, (stats, metrics)), grads = gradient(state.params, state.batch_stats, batch, key)
        grads, metrics = jax.lax.pmean((grads, {"loss": value, **metrics}), parallel.AXIS)
        # Optax raises floats to integer powers, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        # `optax.masked` passes on the gradients of frozen leaves, so their old values return here.
        params = with_frozen(optax.apply_updates(state.params, updates), state.params)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step)) if ema_decay else 0.0
        ema = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, state.ema_params, params
        )
        ema = with_frozen(ema, state.ema_params)
        # As a step towards the new value, which leaves the bits of frozen statistics as they are.
        ema_stats = jax.tree.map(
            lambda old, new: old + (1 - decay) * (new - old) if ema_decay else new,
            state.ema_batch_stats,
            stats,
        )
        return TrainState(state.step + 1, params, ema, stats, ema_stats, opt_state), metrics

    return step


@dataclass(frozen=True)
class Trainer:
    """One kind of network, compiled once per run and trained many times."""

    init: Callable[[jax.Array], Variables]  # key -> initial weights
    start: Callable[[Variables, float, float], TrainState]  # weights, learning rate, steps
    program: Callable  # parallel.train_program of the step
    loss: Loss
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
    section: TrainingConfig,
    steps_per_dispatch: int,
    trainable: Trainable = train_all,
    microbatches: int = 1,
) -> Trainer:
    """`init(key)` gives a network's variables: `params` and perhaps `batch_stats`."""
    tx = optimizer(section, trainable)

    def new(key):
        # A network without BatchNorm has the same fields in its state as the others.
        return {"batch_stats": {}, **init(key)}

    def start(variables, learning_rate, steps):
        return _start(tx, variables, learning_rate, steps)

    # On every device from the start: the mapped step takes a replicated state.
    place = parallel.replicated()
    # Initial weights are made once: on a CPU, LLVM's later passes take more time than they save
    # (14 s in place of 6 s for the quickstart's U-Net; the bits are the same).
    quickly = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return Trainer(
        init=jax.jit(new, out_shardings=place, compiler_options=quickly),
        start=jax.jit(start, out_shardings=place),
        program=parallel.train_program(
            make_step(loss, tx, section.ema_decay, trainable, microbatches)
        ),
        loss=loss,
        # Shapes alone, nothing is computed: what checkpoints are restored into.
        abstract=jax.eval_shape(lambda key: start(new(key), 0.0, 1.0), jax.random.key(0)),
        batch=section.batch,
        steps_per_dispatch=steps_per_dispatch,
    )


def activation_bytes(trainer: Trainer, side: int) -> int:
    """Returns the bytes that the loss keeps for its gradient, per image of `side` pixels.

    Counted in the traced program. XLA merges some operations, so that its own count can be smaller.
    """
    images = 997  # a prime: what is kept for each image has a multiple of it, weights do not

    def gradient(params, stats, batch, key):
        return jax.vjp(lambda params: trainer.loss(params, stats, batch, key)[0], params)[1]

    def of(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((1, images, *shape), dtype)

    batch = {"pixels": of(side, side, 3, dtype=jnp.uint8)}
    batch |= {name: of() for name in ("label", "group", "position")}
    # An axis of one device, because BatchNorm takes means over it.
    on_device = jax.vmap(gradient, (None, None, 0, None), axis_name=parallel.AXIS)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = trainer.abstract
    kept = jax.tree.leaves(jax.eval_shape(on_device, state.params, state.batch_stats, batch, key))
    return (
        sum(leaf.size * leaf.dtype.itemsize for leaf in kept if leaf.size % images == 0) // images
    )


def _start(tx, variables, learning_rate, steps) -> TrainState:
    """The state at step 0, with the averages initialised to weights and statistics.

    Everything is copied: training donates its state, and the weights given may be in use.
    """
    params = jax.tree.map(jnp.copy, variables["params"])
    ema = jax.tree.map(jnp.copy, variables["params"])
    stats = jax.tree.map(jnp.copy, variables["batch_stats"])
    ema_stats = jax.tree.map(jnp.copy, variables["batch_stats"])
    opt_state = tx.init(params)
    hyper = {
        "learning_rate": jnp.asarray(learning_rate, jnp.float32),
        "total_steps": jnp.asarray(steps, jnp.float32),
    }
    opt_state = opt_state._replace(hyperparams={**opt_state.hyperparams, **hyper})
    return TrainState(jnp.zeros((), jnp.int32), params, ema, stats, ema_stats, opt_state)


def ema_variables(state: TrainState) -> Variables:
    """The variables that a trained network is used with: the averages of all."""
    return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
