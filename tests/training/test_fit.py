"""Tests the optimizer against NumPy, and `fit`: resuming, checkpoints, damage, NaN losses."""

import json
import math
import threading
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfloop_jax.data.images import Images
from selfloop_jax.errors import RunError
from selfloop_jax.runtime import environment, log, parallel
from selfloop_jax.training import fit as fitting
from selfloop_jax.training.checkpoints import Checkpoints, Saver, state_digest
from selfloop_jax.training.fit import Preempted, put_on_devices
from selfloop_jax.training.step import ema_variables, make_trainer

BATCH = 8


SECTION = SimpleNamespace(
    batch=BATCH, warmup_steps=3, weight_decay=0.0, clip_norm=1.0, adam_b2=0.99, ema_decay=0.0
)


def changed(**changes):
    return SimpleNamespace(**{**vars(SECTION), **changes})


VECTOR, MATRIX = np.float32([1.0, -2.0, 0.5]), np.float32([[2.0, -1.0], [0.25, 3.0]])


def slope_loss(params, batch_stats, batch, key):
    return jnp.mean(batch["slope"]) * (jnp.sum(params["vector"]) + jnp.sum(params["matrix"])), (
        batch_stats,
        {},
    )


def slope_trainer(section):
    def init(key):
        return {"params": {"vector": jnp.asarray(VECTOR), "matrix": jnp.asarray(MATRIX)}}

    return make_trainer(init, slope_loss, section, 1)


def trajectory(trainer, slopes, learning_rate, total):
    """Returns weights and their average after each step, both float64[steps + 1, 7].

    The vector comes before the matrix.
    """

    def flat(params):
        return np.concatenate([params["vector"], np.ravel(params["matrix"])], dtype=np.float64)

    key = parallel.replicate(jax.random.key(0))
    state = trainer.start(trainer.init(jax.random.key(0)), learning_rate, total)
    seen = [(flat(state.params), flat(state.ema_params))]
    for slope in slopes:
        rows = parallel.shard_steps({"slope": np.full((1, BATCH), slope, np.float32)})
        state, _ = trainer.program(state, {}, rows, key)
        seen.append((flat(state.params), flat(state.ema_params)))
    return np.array(seen).swapaxes(0, 1)


def reference_rates(learning_rate, total, warmup, steps):
    """Returns rates: linear warm-up to step `warmup` times half a cosine to step `total`."""
    rates = []
    for count in range(steps):
        warm = (count + 1) / warmup if count < warmup else 1.0
        rates.append(learning_rate * warm * np.cos(np.pi / 2 * min(count / total, 1)) ** 2)
    return np.array(rates)


def reference_trajectory(section, slopes, rates):
    """Returns weights and their average by AdamW with clipping, in float64."""
    weights = np.concatenate([VECTOR, MATRIX.ravel()]).astype(np.float64)
    decays = np.array([0, 0, 0, 1, 1, 1, 1]) * section.weight_decay
    m, v, average = np.zeros(7), np.zeros(7), weights
    seen = [(weights, average)]
    for i, (slope, rate) in enumerate(zip(slopes, rates, strict=True)):
        gradient = np.full(7, slope)
        gradient = gradient * min(1, section.clip_norm / max(np.linalg.norm(gradient), 1e-30))
        m, v = 0.9 * m + 0.1 * gradient, section.adam_b2 * v + (1 - section.adam_b2) * gradient**2
        m_hat, v_hat = m / (1 - 0.9 ** (i + 1)), v / (1 - section.adam_b2 ** (i + 1))
        weights = weights - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + decays * weights)
        decay = min(section.ema_decay, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * weights
        seen.append((weights, average))
    return np.array(seen).swapaxes(0, 1)


@pytest.mark.parametrize(("learning_rate", "total"), [(0.1, 10.0), (0.02, 40.0)])
def test_learning_rate_warms_up_and_falls_as_a_cosine(learning_rate, total):
    # A constant gradient is 1 after Adam's normalisation: a step's length is its learning rate.
    weights, _ = trajectory(slope_trainer(SECTION), [0.1] * 14, learning_rate, total)
    rates = reference_rates(learning_rate, total, SECTION.warmup_steps, 14)
    np.testing.assert_allclose(
        -np.diff(weights, axis=0), np.repeat(rates[:, None], 7, 1), rtol=1e-4, atol=1e-6
    )
    if total < 14:
        np.testing.assert_array_equal(weights[int(total) :], weights[[-1] * (15 - int(total))])


def test_another_learning_rate_and_number_of_steps_compile_nothing():
    trainer = slope_trainer(SECTION)
    short, _ = trajectory(trainer, [0.1] * 6, 0.1, 6.0)
    compiled = environment.count_compilations()
    long, _ = trajectory(trainer, [0.1] * 6, 0.02, 500.0)
    assert compiled() == 0
    assert np.abs(short - long).max() > 0.1


SLOPES = [0.1, 1000.0, -0.2, 0.05, 0.0, 3.0, -0.01, 0.3, 0.1, 0.1, -0.5, 0.2]


@pytest.mark.parametrize("ema_decay", [0.0, 0.3, 0.999])
def test_weights_and_their_average_equal_numpy(ema_decay):
    section = changed(ema_decay=ema_decay, weight_decay=0.5)
    seen = trajectory(slope_trainer(section), SLOPES, 0.1, 15.0)
    expected = reference_trajectory(section, SLOPES, reference_rates(0.1, 15.0, 3, len(SLOPES)))
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(seen[0], seen[1]) == (ema_decay == 0)


def test_weight_decay_leaves_vectors_alone():
    weights, _ = trajectory(slope_trainer(changed(weight_decay=0.5)), [0.0] * 5, 0.1, 100.0)
    np.testing.assert_array_equal(weights[:, :3], np.tile(VECTOR, (6, 1)))
    shrunk = np.cumprod(1 - 0.5 * reference_rates(0.1, 100.0, 3, 5))
    np.testing.assert_allclose(weights[1:, 3:], shrunk[:, None] * MATRIX.reshape(1, 4), rtol=1e-5)


STEPS, INTERVAL = 6, 2


def images(count):
    random = np.random.default_rng(count)
    return Images(
        pixels=random.integers(0, 256, (count, 2, 2, 3), np.uint8),
        label=random.integers(0, 3, count, np.int32),
        group=np.zeros(count, np.int32),
        origin=np.full(count, -1, np.int32),
        id=np.arange(count, dtype=np.uint32),
    )


POOL = images(11)


def linear_loss(params, batch_stats, batch, key):
    x = batch["pixels"].reshape(-1, 12).astype(jnp.float32) / 255.0
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
    noise = jax.vmap(jax.random.normal)(keys)
    mean = jax.lax.pmean(x.mean(), parallel.AXIS)
    stats = {"mean": 0.9 * batch_stats["mean"] + 0.1 * mean}
    error = (x @ params["w"]).sum(axis=-1) + 0.1 * noise
    error -= batch["label"].astype(jnp.float32)
    return jnp.mean(error**2), (stats, {"bias": error.mean()})


def linear_init(key):
    return {
        "params": {"w": jax.random.normal(key, (12, 100))},
        "batch_stats": {"mean": jnp.zeros(())},
    }


@pytest.fixture(scope="module")
def trainers():
    """Returns trainers by steps per dispatch."""
    section = changed(ema_decay=0.3)
    return {k: make_trainer(linear_init, linear_loss, section, k) for k in (1, 2, 3)}


def fit(
    trainer,
    folder,
    *,
    stop=lambda: False,
    steps=STEPS,
    interval=INTERVAL,
    keep=1,
    rate=0.05,
    pool=POOL,
    every=2,
    minutes=math.inf,
):
    folder.mkdir(exist_ok=True)
    progress = log.Progress(log.Metrics(folder / "metrics.jsonl"), 3, "toy", every)
    checkpoints = Checkpoints(folder / "toy", interval, keep, minutes)
    job = fitting.Job(
        trainer=trainer,
        columns=fitting.training_columns(pool),
        weights=None,
        steps=steps,
        learning_rate=rate,
        key_path=(0, "toy"),
        capacity=16,
        placement="device",
        checkpoints=checkpoints,
        progress=progress,
        stop=stop,
    )
    (fitted,) = fitting.fit([job])
    assert fitted.digest == state_digest(fitted.state)
    return fitted.digest


def lines(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def saved(folder):
    return Checkpoints(folder / "toy", INTERVAL, 1).steps()


def stop_at_call(number):
    calls = iter(range(1, 1000))
    return lambda: next(calls) == number


@pytest.fixture(scope="module")
def whole(trainers, tmp_path_factory):
    """Returns digests of uninterrupted runs by steps per dispatch."""
    return {k: fit(trainers[k], tmp_path_factory.mktemp(f"whole{k}")) for k in (1, 2)}


def test_a_training_whose_interval_takes_long_saves_by_time(trainers, whole, tmp_path):
    """Whatever the time, it saves after every dispatch here, and the bits are the same."""
    folder = tmp_path / "run"
    assert fit(trainers[1], folder, interval=1_000, keep=100, minutes=1e-9) == whole[1]
    assert saved(folder) == list(range(1, STEPS + 1))
    assert fit(trainers[1], tmp_path / "slow", interval=1_000, keep=100, minutes=1e9) == whole[1]
    assert saved(tmp_path / "slow") == [STEPS]


@pytest.mark.parametrize(("k", "dispatch"), [(1, 1), (1, 2), (1, 5), (2, 1), (2, 2)])
def test_stopped_run_saves_its_step_and_resumes_to_the_same_bits(
    trainers, whole, tmp_path, k, dispatch
):
    done = k * dispatch
    with pytest.raises(Preempted, match=f"generation 3, toy, step {done}"):
        fit(trainers[k], tmp_path, stop=stop_at_call(dispatch))
    assert saved(tmp_path) == [done]
    assert fit(trainers[k], tmp_path) == whole[k]
    assert {"generation": 3, "phase": "toy", "step": done, "event": "resumed"} in lines(tmp_path)
    assert saved(tmp_path) == [STEPS]


def test_killed_run_resumes_from_the_last_interval_to_the_same_bits(trainers, whole, tmp_path):
    calls = []

    def killed():
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        fit(trainers[1], tmp_path, stop=killed)
    assert saved(tmp_path) == [4]
    assert fit(trainers[1], tmp_path) == whole[1]


def test_stop_at_the_last_step_is_the_end(trainers, whole, tmp_path):
    assert fit(trainers[1], tmp_path, stop=stop_at_call(STEPS)) == whole[1]


def test_finished_training_is_not_run_again(trainers, whole, tmp_path):
    fit(trainers[1], tmp_path)
    idle = replace(trainers[1], program=None, init=None, start=None)
    assert fit(idle, tmp_path) == whole[1]


def test_the_key_path_decides_the_order_of_the_data_and_the_noise(trainers, whole, tmp_path):
    assert fit(trainers[1], tmp_path / "again") == whole[1]
    assert fit(trainers[1], tmp_path / "other", pool=POOL.take(np.arange(11)[::-1])) != whole[1]


def test_a_pool_of_another_size_compiles_nothing(trainers, whole, tmp_path):
    compiled = environment.count_compilations()
    fit(trainers[1], tmp_path, pool=images(16))
    assert compiled() == 0


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize(("k", "interval"), [(1, 2), (1, 100), (3, 3), (3, 100)])
def test_a_loss_that_is_not_finite_names_generation_phase_and_step(
    trainers, tmp_path, k, interval, every
):
    # The first loss is that of the initial weights; an update of infinite length breaks the second.
    with pytest.raises(RunError, match=r"generation 3, toy, step 2: loss is (nan|inf)"):
        fit(trainers[k], tmp_path, rate=np.inf, interval=interval, every=every)
    assert saved(tmp_path) == []
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))


def test_metrics_are_means_over_intervals(trainers, tmp_path):
    fit(trainers[1], tmp_path / "fine", every=1, interval=100)
    fit(trainers[1], tmp_path / "coarse", every=3, interval=100)
    fine, coarse = lines(tmp_path / "fine"), lines(tmp_path / "coarse")
    assert [line["step"] for line in fine] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in coarse] == [3, 6]
    for name in ("loss", "bias"):
        values = np.array([line[name] for line in fine])
        np.testing.assert_allclose(
            [line[name] for line in coarse], values.reshape(2, 3).mean(1), rtol=1e-6
        )
    assert all((line["generation"], line["phase"]) == (3, "toy") for line in fine)


def test_a_new_state_starts_at_step_0_with_its_average_on_the_weights(trainers):
    state = state_of(trainers[1], 0)
    assert state.step == 0
    np.testing.assert_array_equal(state.params["w"], state.ema_params["w"])
    assert state_digest(state_of(trainers[1], 0)) == state_digest(state)
    assert state_digest(state_of(trainers[1], 1)) != state_digest(state)
    assert trainers[1].parameters == 1200


@pytest.mark.parametrize("ema_decay", [0.0, 0.3])
def test_statistics_are_averaged_with_the_decay_of_the_weights(trainers, ema_decay):
    trainer = trainers[1]
    if not ema_decay:
        trainer = make_trainer(linear_init, linear_loss, SECTION, 1)
    pool = put_on_devices(fitting.training_columns(POOL), 16, "device")
    state, average = state_of(trainer, 0), 0.0
    for i in range(4):
        rows = parallel.shard_steps({"index": (np.arange(BATCH)[None] + i) % len(POOL)})
        state, _ = trainer.program(state, pool, rows, parallel.replicate(jax.random.key(0)))
        decay = min(ema_decay, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * float(state.batch_stats["mean"])
        used = ema_variables(state)["batch_stats"]["mean"]
        np.testing.assert_allclose(used, average, rtol=1e-6)
    assert (used == state.batch_stats["mean"]) == (ema_decay == 0)


def test_training_does_not_change_its_initial_weights(trainers):
    weights = trainers[1].init(jax.random.key(0))
    before = state_digest(weights)
    state = trainers[1].start(weights, 0.1, 5.0)
    rows = parallel.shard_steps({"index": np.arange(BATCH)[None] % len(POOL)})
    key = parallel.replicate(jax.random.key(0))
    state, _ = trainers[1].program(
        state, put_on_devices(fitting.training_columns(POOL), 16, "device"), rows, key
    )
    assert state_digest(weights) == before
    assert not np.array_equal(state.params["w"], weights["params"]["w"])


def test_place_pool_pads_on_the_devices_and_leaves_the_host_alone():
    on_device, on_host = (
        put_on_devices(fitting.training_columns(POOL), 16, placement)
        for placement in ("device", "host")
    )
    for name in ("pixels", "label", "group"):
        assert on_host[name] is getattr(POOL, name)
        np.testing.assert_array_equal(on_device[name][:11], on_host[name])
        np.testing.assert_array_equal(on_device[name][11:], 0)
        assert len(on_device[name]) == 16
        assert on_device[name].sharding.is_fully_replicated


def state_of(trainer, seed):
    return trainer.start(trainer.init(jax.random.key(seed)), 0.1, 5.0)


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_checkpoints_and_their_digests_are_kept(trainers, tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, 1, keep)
    assert checkpoints.steps() == []
    assert checkpoints.newest(trainers[1].abstract) is None
    for step in (1, 2, 9, 10):
        checkpoints.save(step, state_of(trainers[1], step))
    assert checkpoints.steps() == [1, 2, 9, 10][-keep:]
    assert sorted(int(path.stem) for path in tmp_path.glob("*.json")) == [1, 2, 9, 10][-keep:]
    for step in checkpoints.steps():
        state = checkpoints.load(step, trainers[1].abstract)
        digest = state_digest(state_of(trainers[1], step))
        assert state_digest(state) == checkpoints.digest(step) == digest
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
    assert state_digest(checkpoints.newest(trainers[1].abstract)) == checkpoints.digest(10)


def test_resume_between_two_dispatches_is_refused(trainers, tmp_path):
    with pytest.raises(Preempted):
        fit(trainers[1], tmp_path, stop=stop_at_call(1))
    assert saved(tmp_path) == [1]
    with pytest.raises(
        RunError, match="toy: stopped at step 1, but this platform dispatches 2 steps at a time"
    ):
        fit(trainers[2], tmp_path)
    assert saved(tmp_path) == [1]


def test_a_saved_step_is_not_written_again(trainers, tmp_path):
    checkpoints = Checkpoints(tmp_path, 1, 1)
    checkpoints.save(4, state_of(trainers[1], 0))
    digest = checkpoints.digest(4)
    checkpoints.save(4, state_of(trainers[1], 1))
    assert checkpoints.digest(4) == digest
    checkpoints.newest(trainers[1].abstract)


BITS = np.random.default_rng(5).integers(0, 2**32, (12, 100), np.uint32).view(np.float32)


@pytest.fixture
def checkpoint(trainers, tmp_path):
    """Returns a folder with a checkpoint of step 5, whose random bits do not compress."""
    checkpoints = Checkpoints(tmp_path, 1, 1)
    checkpoints.save(5, replace(state_of(trainers[1], 0), params=parallel.replicate({"w": BITS})))
    return checkpoints


def assert_damaged(checkpoints, trainer, path):
    with pytest.raises(RunError) as caught:
        checkpoints.newest(trainer.abstract)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_of_a_weight_is_found(trainers, checkpoint, tmp_path, bit):
    weight = BITS[5, 50:54].tobytes()
    (path,) = [p for p in (tmp_path / "5").rglob("*") if p.is_file() and weight in p.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.find(weight)] ^= 1 << bit
    path.write_bytes(data)
    assert_damaged(checkpoint, trainers[1], tmp_path / "5")


def test_a_checkpoint_that_orbax_cannot_read_is_damaged(trainers, checkpoint, tmp_path):
    (tmp_path / "5" / "_METADATA").unlink()
    assert_damaged(checkpoint, trainers[1], tmp_path / "5")


@pytest.mark.parametrize("text", ['{"step": 5, "sha256": "%s"}' % ("0" * 64), "not json", None])
def test_a_wrong_or_missing_digest_is_found(trainers, checkpoint, tmp_path, text):
    path = tmp_path / "5.json"
    path.unlink() if text is None else path.write_text(text)
    assert_damaged(checkpoint, trainers[1], tmp_path / "5")


def test_a_checkpoint_must_have_the_digest_that_the_record_names(trainers, checkpoint, tmp_path):
    checkpoint.load(5, trainers[1].abstract, checkpoint.digest(5))
    with pytest.raises(RunError, match="damaged"):
        checkpoint.load(5, trainers[1].abstract, "0" * 64)


def test_remains_of_a_killed_save_are_ignored(trainers, checkpoint, tmp_path):
    half = tmp_path / "7.orbax-checkpoint-tmp-0"
    half.mkdir()
    (half / "data").write_bytes(b"half")
    (tmp_path / "7.json").write_text('{"step": 7, "sha256": "none yet"}')
    (tmp_path / "7.json.tmp").write_text("{")
    assert checkpoint.steps() == [5]
    assert state_digest(checkpoint.newest(trainers[1].abstract)) == checkpoint.digest(5)
    checkpoint.save(7, state_of(trainers[1], 7))
    assert checkpoint.steps() == [7]
    assert state_digest(checkpoint.newest(trainers[1].abstract)) == checkpoint.digest(7)
    assert not half.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: np.nextafter(w, np.float32(9)),
        lambda w: w.astype(np.float64),
        lambda w: w.reshape(100, 12),
        lambda w: np.where(w == w.min(), -w, w),
    ],
)
def test_a_states_digest_covers_values_type_and_shape(trainers, change):
    state = jax.device_get(state_of(trainers[1], 0))
    other = replace(state, params={"w": change(state.params["w"])})
    assert state_digest(other) != state_digest(state)
    assert state_digest(replace(state, params={"v": state.params["w"]})) != state_digest(state)


def test_weights_that_are_not_finite_are_not_saved(trainers, tmp_path):
    with pytest.raises(RunError, match="generation 3, toy, step 1: weights are not finite"):
        fit(trainers[1], tmp_path, steps=1, rate=np.inf)
    assert not list(tmp_path.glob("toy/1"))


class SlowDisk(Checkpoints):
    """Waits for `go` before it saves."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.go = threading.Event()

    def save(self, step, state):
        assert self.go.wait(60)
        super().save(step, state)


def test_training_continues_while_a_state_is_saved(trainers, tmp_path):
    trainer = trainers[1]
    checkpoints = SlowDisk(tmp_path, INTERVAL, 1)
    state = state_of(trainer, 1)
    expected = state_digest(state)
    pool = put_on_devices(fitting.training_columns(POOL), 16, "device")
    rows = parallel.shard_steps({"index": np.arange(BATCH, dtype=np.int32)[None]})
    with Saver(checkpoints) as saver:
        saver.save(1, state, "here")
        # A step takes the memory of the state, whose copy waits for the disk.
        state, _ = trainer.program(state, pool, rows, parallel.replicate(jax.random.key(0)))
        assert state_digest(state) != expected
        assert checkpoints.steps() == []
        checkpoints.go.set()
        saver.wait()
        assert checkpoints.digest(1) == expected
        assert state_digest(checkpoints.load(1, trainer.abstract)) == expected


def test_a_failed_save_is_raised_by_the_next_wait(trainers, tmp_path):
    checkpoints = Checkpoints(tmp_path / "file", INTERVAL, 1)
    (tmp_path / "file").write_text("no folder")
    with Saver(checkpoints) as saver:
        saver.save(1, state_of(trainers[1], 1), "here")
        with pytest.raises((RunError, OSError)):
            saver.wait()
        saver.wait()  # raised once
