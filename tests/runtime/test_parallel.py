"""Tests programs on four devices against plain computations on one, and array placement."""

from collections import deque
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from selfloop_jax import config as configs
from selfloop_jax.config import FlipConfig
from selfloop_jax.data.images import Images, batch_indices
from selfloop_jax.diffusion import processes
from selfloop_jax.errors import RunError
from selfloop_jax.loop import context, runner
from selfloop_jax.loop.phase import always
from selfloop_jax.models.resnet import ResNet
from selfloop_jax.models.unet import UNet
from selfloop_jax.runtime import environment, log, parallel
from selfloop_jax.studies import self_consuming
from selfloop_jax.training import classifier, generator
from selfloop_jax.training import fit as fitting
from selfloop_jax.training.checkpoints import Checkpoints
from selfloop_jax.training.fit import put_on_devices
from selfloop_jax.training.step import TrainState, ema_variables, optimizer

DEVICES, BATCH, STEPS, LEARNING_RATE, TOTAL = 4, 8, 4, 1e-2, 10.0


SECTION = SimpleNamespace(
    network="resnet",
    batch=BATCH,
    warmup_steps=2,
    weight_decay=0.1,
    clip_norm=1.0,
    adam_b2=0.99,
    ema_decay=0.3,
    label_dropout=0.3,
    microbatches=1,
    augment=FlipConfig(flip=True),
    normalize="unit",
    freeze=False,
    init_from="",
)


PROCESS = processes.Edm(
    sigma_data=0.5, p_mean=-1.2, p_std=1.2, sigma_min=0.002, sigma_max=80.0, rho=7.0
)


U_NET = UNet(
    3, 2, channels=8, multipliers=(1,), blocks=0, attention=(), heads=1, dropout=0.1, stem=2
)


RES_NET = ResNet(num_classes=3, stages=(1,), width=8, axis_name=parallel.AXIS)


RANDOM = np.random.default_rng(0)


POOL = Images(
    pixels=RANDOM.integers(0, 256, (19, 8, 8, 3), np.uint8),
    label=RANDOM.integers(0, 3, 19, np.int32),
    group=RANDOM.integers(-1, 2, 19, np.int32),
    origin=np.full(19, -1, np.int32),
    id=np.arange(19, dtype=np.uint32),
)


KINDS = ["diffusion", "classifier"]


# What a plain computation of each loss on one device needs: no axis to take means over.
PLAIN = {
    "diffusion": partial(generator.loss, model=U_NET, process=PROCESS, section=SECTION),
    "classifier": partial(classifier.loss, model=replace(RES_NET, axis_name=None), section=SECTION),
}


@pytest.fixture(scope="module")
def trainers():
    """Returns trainers by kind and steps per dispatch."""

    def make(kind, k):
        if kind == "diffusion":
            return generator.make_trainer(U_NET, PROCESS, SECTION, 8, k)
        return classifier.make_trainer(RES_NET, SECTION, 8, k)

    return {(kind, k): make(kind, k) for kind in KINDS for k in (1, 4)}


def start(trainer):
    """Returns the state of step 0 with random weights, none of which is zero."""
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: random.normal(0, 0.2, x.shape).astype(np.float32), trainer.abstract.params
    )
    stats = jax.tree.map(lambda x: np.ones(x.shape, np.float32), trainer.abstract.batch_stats)
    return trainer.start({"params": params, "batch_stats": stats}, LEARNING_RATE, TOTAL)


def indices(steps=STEPS):
    return np.stack([batch_indices((0, "order"), len(POOL), BATCH, step) for step in range(steps)])


def run(trainer, state, key):
    """Returns state and losses after STEPS steps."""
    pool = put_on_devices(fitting.training_columns(POOL), 24, "device")
    losses = []
    for index in np.split(indices(), STEPS // trainer.steps_per_dispatch):
        rows = parallel.shard_steps({"index": index})
        state, metrics = trainer.program(state, pool, rows, parallel.replicate(key))
        losses.extend(np.asarray(metrics["loss"]))
    return jax.device_get(state), np.array(losses)


def run_plain(kind, state, key):
    """Returns state and losses of the same steps, computed plainly on one device."""
    tx = optimizer(SECTION)

    @jax.jit
    def step(state, batch):
        gradient = jax.value_and_grad(PLAIN[kind], has_aux=True)
        noise_key = jax.random.fold_in(key, state.step)
        (loss, (stats, _)), grads = gradient(state.params, state.batch_stats, batch, noise_key)
        with jax.numpy_dtype_promotion("standard"):  # as in training/step.py
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(SECTION.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), state.ema_params, params)
        ema_stats = jax.tree.map(
            lambda a, b: decay * a + (1 - decay) * b, state.ema_batch_stats, stats
        )
        return TrainState(state.step + 1, params, ema, stats, ema_stats, opt_state), loss

    losses = []
    for index in indices():
        batch = {name: getattr(POOL, name)[index] for name in ("pixels", "label", "group")}
        state, loss = step(state, {**batch, "position": np.arange(BATCH, dtype=np.int32)})
        losses.append(np.asarray(loss))
    return jax.device_get(state), np.array(losses)


def assert_close(state, expected, tolerance=2e-5):
    """Compares weights, averages, statistics and Adam's moments by relative L2 per leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    for (path, leaf), other in zip(leaves, jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        difference = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        assert difference <= tolerance, (jax.tree_util.keystr(path), difference)


@pytest.mark.parametrize("kind", KINDS)
def test_train_program_equals_a_plain_computation_on_one_device(trainers, kind):
    trainer, key = trainers[kind, 1], jax.random.key(5)
    plain, plain_losses = run_plain(kind, jax.device_get(start(trainer)), key)
    state, losses = run(trainer, start(trainer), key)
    assert state.step == plain.step == STEPS
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    assert_close(state, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_four_steps_a_dispatch_are_close_to_four_dispatches(trainers, kind):
    key = jax.random.key(5)
    one, one_losses = run(trainers[kind, 1], start(trainers[kind, 1]), key)
    four, four_losses = run(trainers[kind, 4], start(trainers[kind, 4]), key)
    np.testing.assert_allclose(four_losses, one_losses, rtol=1e-5)
    assert_close(four, one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_training_keeps_the_averaged_weights_and_resets_the_rest(trainers, kind):
    trainer = trainers[kind, 1]
    trained, _ = run(trainer, start(trainer), jax.random.key(5))
    state = jax.device_get(trainer.start(ema_variables(trained), 0.5, 7.0))
    assert state.step == 0
    for new in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, new, trained.ema_params)
    for new in (state.batch_stats, state.ema_batch_stats):
        jax.tree.map(np.testing.assert_array_equal, new, trained.ema_batch_stats)
    assert state.opt_state.hyperparams["learning_rate"] == 0.5
    assert state.opt_state.hyperparams["total_steps"] == 7
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert moments
    assert not any(np.any(x) for x in moments)


def fit(trainer, folder, placement):
    """Returns the final digest of STEPS steps of `training.fit`."""
    folder.mkdir(exist_ok=True)
    progress = log.Progress(log.Metrics(folder / "metrics.jsonl"), 0, "test", 1)
    checkpoints = Checkpoints(folder / "checkpoints", STEPS, 1)
    job = fitting.Job(
        trainer=trainer,
        columns=fitting.training_columns(POOL),
        weights=None,
        steps=STEPS,
        learning_rate=0.1,
        key_path=(0,),
        capacity=24,
        placement=placement,
        checkpoints=checkpoints,
        progress=progress,
        stop=lambda: False,
    )
    (fitted,) = fitting.fit([job])
    return fitted.digest


@pytest.mark.parametrize(
    ("phase", "field"),
    [("diffusion", "diffusion.microbatches = 2"), ("sample", "sample.batch_per_device = 50")],
)
def test_out_of_memory_says_what_to_set(phase, field, tmp_path):
    def full(_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")

    (found,) = [one for one in self_consuming.STUDY.phases if one.name == phase]
    small = replace(self_consuming.STUDY, phases=(replace(found, read=full, applies=always),))
    config = configs.typed(configs.default())
    config = replace(config, sample=replace(config.sample, batch_per_device=100))
    run = context.GenerationRun(SimpleNamespace(config=config), 3, tmp_path, tmp_path)
    with pytest.raises(RunError, match=rf"^generation 3, {phase}: out of memory: set {field}; "):
        runner.run_stage(small, run, entry=0)


@pytest.mark.parametrize("kind", KINDS)
def test_pool_on_the_host_gives_the_bits_of_pool_on_the_devices(trainers, kind, tmp_path):
    digests = {
        fit(trainers[kind, 1], tmp_path / placement, placement) for placement in ("host", "device")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("placement", ["device", "host"])
def test_training_makes_no_implicit_transfer_to_the_devices(trainers, placement, tmp_path):
    trainer = trainers["classifier", 1]
    calls = []

    def guarded(*arguments):
        calls.append({len(leaf.sharding.device_set) for leaf in jax.tree.leaves(arguments)})
        with jax.transfer_guard("disallow"):
            return trainer.program(*arguments)

    fit(replace(trainer, program=guarded), tmp_path, placement)
    assert calls == [{DEVICES}] * STEPS


def test_the_transfer_guard_sees_a_pool_left_on_the_host(trainers):
    trainer = trainers["classifier", 1]
    rows, pool = (
        parallel.shard_steps({"index": indices(1)}),
        put_on_devices(fitting.training_columns(POOL), 24, "host"),
    )
    key = parallel.replicate(jax.random.key(0))
    state = start(trainer)
    with (
        jax.transfer_guard("disallow"),
        pytest.raises(Exception, match="Disallowed host-to-device transfer"),
    ):
        trainer.program(state, pool, rows, key)


def test_replicate_puts_every_leaf_on_every_device():
    tree = parallel.replicate({"a": np.arange(3), "key": jax.random.key(1)})
    for leaf in jax.tree.leaves(tree):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == DEVICES
    assert parallel.device_count() == DEVICES


def test_split_gives_each_device_its_part_in_order():
    x = np.arange(24).reshape(12, 2)
    parts = parallel.shard({"x": x})["x"]
    np.testing.assert_array_equal(parts, x.reshape(4, 3, 2))
    for device, shard in enumerate(
        sorted(parts.addressable_shards, key=lambda shard: shard.device.id)
    ):
        np.testing.assert_array_equal(shard.data[0], x[3 * device : 3 * device + 3])


def test_spread_maps_rows_in_order_and_shares_the_rest():
    def function(shared, rows):
        return {
            "sum": shared + rows["x"] + rows["y"],
            "rows": rows["x"][:, None] * jnp.ones((1, 2)),
        }

    rows = {"x": np.arange(8.0, dtype=np.float32), "y": np.float32(range(0, 80, 10))}
    out = parallel.map_over_devices(function)(np.float32(100), rows)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(out))
    np.testing.assert_array_equal(out["sum"], 100 + 11 * np.arange(8))
    np.testing.assert_array_equal(out["rows"], np.repeat(np.arange(8)[:, None], 2, axis=1))


@struct.dataclass
class Counter:
    step: jax.Array


@struct.dataclass
class Weights:
    step: jax.Array
    w: jax.Array


def probe(state, batch, key):
    """Returns the inputs of every device, in the order of the devices."""
    seen = {**batch, "key": jax.random.key_data(key), "devices": jnp.ones(())}
    return Counter(state.step + 1), jax.lax.all_gather(seen, parallel.AXIS)


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("k", [1, 3])
def test_every_step_gets_its_batch_positions_and_key(placement, k):
    program = parallel.train_program(probe)
    index, pool = indices(k), {"label": np.arange(100, 119, dtype=np.int32)}
    if placement == "device":
        rows, pool = {"index": index}, parallel.replicate(pool)
    else:
        rows, pool = {"label": pool["label"][index]}, {}
    state, key = parallel.replicate(Counter(jnp.int32(7))), jax.random.key(3)
    state, seen = program(state, pool, parallel.shard_steps(rows), parallel.replicate(key))
    assert state.step == 7 + k
    assert seen["devices"].shape == (k, DEVICES)
    np.testing.assert_array_equal(np.reshape(seen["label"], (k, BATCH)), 100 + index)
    np.testing.assert_array_equal(np.reshape(seen["position"], (k, BATCH)), [range(BATCH)] * k)
    expected = [jax.random.key_data(jax.random.fold_in(key, 7 + i)) for i in range(k)]
    for device in range(DEVICES):
        np.testing.assert_array_equal(seen["key"][:, device], expected)


def test_the_state_is_donated(trainers):
    trainer = trainers["classifier", 1]
    state, key = start(trainer), parallel.replicate(jax.random.key(0))
    rows = parallel.shard_steps({"index": indices(1)})
    trainer.program(state, put_on_devices(fitting.training_columns(POOL), 24, "device"), rows, key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def copies(values):
    """Returns a replicated array whose copy on device i is `values[i]`."""
    shards = [
        jax.device_put(np.float32(value), device)
        for value, device in zip(values, jax.devices(), strict=True)
    ]
    return jax.make_array_from_single_device_arrays(
        np.shape(values[0]), parallel.replicated(), shards
    )


def test_check_replicas_accepts_equal_copies():
    parallel.check_replicas({"w": copies([[1, np.nan]] * 4), "key_data": copies([0.0] * 4)}, "here")


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [1, 2], [1, 2], [1, np.nextafter(np.float32(2), np.float32(3))]],
        [[1], [2], [1], [1]],
        [0, 0, -0.0, 0],
    ],
)
def test_check_replicas_names_the_leaf_whose_copies_differ(values):
    state = {"good": copies([1.0] * 4), "layer": {"kernel": copies(values)}}
    with pytest.raises(
        RunError, match=r"generation 1, classifier, step 5: .*\['layer'\]\['kernel'\]"
    ):
        parallel.check_replicas(state, "generation 1, classifier, step 5")


def test_fingerprints_are_the_same_on_the_devices_and_on_the_host(monkeypatch):
    random = np.random.default_rng(0)
    tree = {
        "float32": random.normal(size=(3, 5, 2)).astype(np.float32),
        "bfloat16": random.normal(size=7).astype(jnp.bfloat16),
        "int32": random.integers(-9, 9, (70_000,), np.int32),
        "uint8": random.integers(0, 9, (2, 3), np.uint8),
        "bool": random.random(9) < 0.5,
        "scalar": np.float32(3),
    }
    placed = parallel.replicate(tree)
    host = parallel.fingerprints(placed)
    assert host.shape == (4, len(tree))
    assert len(np.unique(host[0])) == len(tree)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(parallel.fingerprints(placed), host)
    kernel = copies([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])  # two words exchanged
    with pytest.raises(RunError, match=r"devices disagree on \['kernel'\]"):
        parallel.check_replicas({"kernel": kernel}, "test")


def test_changes_of_single_bits_all_change_the_fingerprint():
    words = np.random.default_rng(0).integers(0, 2**32, 300, np.uint32)
    found = {int(parallel.fingerprints({"w": parallel.replicate(words)})[0, 0])}
    for place in range(300):
        other = words.copy()
        other[place] ^= np.uint32(1 << place % 32)
        found.add(int(parallel.fingerprints({"w": parallel.replicate(other)})[0, 0]))
    words[:2] ^= np.uint32(1 << 31)  # two signs: a plain sum of products would not change
    found.add(int(parallel.fingerprints({"w": parallel.replicate(words)})[0, 0]))
    assert len(found) == 302


def test_a_forgotten_mean_over_devices_is_found():
    def step(state, batch, key):
        return Weights(state.step + 1, state.w + jnp.sum(batch["position"])), {}

    state = parallel.replicate(Weights(jnp.int32(0), jnp.int32(0)))
    rows = parallel.shard_steps({"x": np.zeros((1, BATCH), np.float32)})
    state, _ = parallel.train_program(step)(state, {}, rows, parallel.replicate(jax.random.key(0)))
    with pytest.raises(RunError, match=r"devices disagree on \.w"):
        parallel.check_replicas(state, "test")


def test_throttle_waits_for_the_oldest_beyond_its_bound():
    waited, under_way = [], deque()
    for i in range(parallel.IN_FLIGHT + 5):
        parallel.limit_in_flight(
            under_way, SimpleNamespace(block_until_ready=partial(waited.append, i))
        )
        assert len(under_way) <= parallel.IN_FLIGHT
    assert waited == [0, 1, 2, 3, 4]


def test_count_compilations_counts_new_programs_alone():
    count = environment.count_compilations()
    program = jax.jit(lambda x: x * 3 + 1)
    program(np.float32(1))
    first = count()
    program(np.float32(2))
    assert first == count() == 1
    program(np.ones(3, np.float32))
    assert count() == 2
