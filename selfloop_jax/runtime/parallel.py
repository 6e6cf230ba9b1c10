"""Data parallelism: the only module that maps programs or places arrays on devices.

State, keys and the pool are replicated, batches are split along their first axis. With several
processes every array is local to its process; only the mapped programs communicate.
"""

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfloop_jax.errors import RunError
from selfloop_jax.runtime import multihost

AXIS = "devices"
Tree = Any
# The most steps in flight. XLA's CPU client lets 32 computations through per device and then blocks
# one of the threads that the other devices need to arrive at a collective: with as few threads as
# devices, a deadlock.
IN_FLIGHT = 8


@cache
def devices() -> list[jax.Device]:
    """All devices in the order of the axis: those of one process are neighbours."""
    # The place in this list decides an example's place in the global batch, so all processes need
    # the same order.
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


@cache
def _sharding(spec: PartitionSpec) -> NamedSharding:
    # A process can place arrays on its own devices alone.
    own = [device for device in devices() if device.process_index == jax.process_index()]
    return NamedSharding(Mesh(np.array(own), (AXIS,)), spec)


def device_count() -> int:
    """Devices that a batch is split over."""
    return jax.device_count()


def meet() -> None:
    """Connects the devices of all processes; call it once, when all processes have just started.

    On CPUs the first collective connects them and gives up after 30 s (Gloo's default, which XLA
    leaves). Before the first step a process can be later than that: it compiles, or makes a cache.
    """
    if jax.process_count() > 1:
        total = jax.pmap(lambda x: jax.lax.psum(x, AXIS), AXIS, devices=devices())
        jax.block_until_ready(total(np.ones(jax.local_device_count())))
        multihost.barrier()


def replicated() -> NamedSharding:
    """The placement of state, keys and pools."""
    return _sharding(PartitionSpec())


def replicate(tree: Tree) -> Tree:
    """A copy of every leaf on every device of this process."""
    return jax.device_put(tree, replicated())


def shard(tree: Tree) -> Tree:
    """Host arrays [N,...] as [devices, N / devices, ...], a part on each device of this process."""
    count = jax.device_count()

    def split(x):
        return x.reshape(count, len(x) // count, *x.shape[1:])

    return _local_shards(jax.tree.map(split, tree))


def shard_steps(tree: Tree) -> Tree:
    """Host arrays of k batches, [k,B,...], as [devices, k, B / devices, ...], a part a device."""
    count = jax.device_count()

    def split(x):
        # pmap maps over the first axis, the scan over the second.
        return x.reshape(len(x), count, -1, *x.shape[2:]).swapaxes(0, 1)

    return _local_shards(jax.tree.map(split, tree))


def _local_shards(parts: Tree) -> Tree:
    """Of host arrays [devices,...] the parts of this process, each on its own device."""
    own = jax.local_device_count()
    first = jax.process_index() * own
    local = jax.tree.map(lambda x: x[first : first + own], parts)
    return jax.device_put(local, _sharding(PartitionSpec(AXIS)))


def train_program(step: Callable) -> Callable:
    """Maps `step(state, batch, key) -> (state, metrics)` to `program(state, pool, rows, key)`.

    pool: arrays [N,...], replicated. rows: {"index": int32[devices, k, B / devices]} of k steps, or
    with an empty pool the batches themselves, [devices, k, B / devices, ...]. Every step's batch
    carries `position`, each example's place in the global batch, and its key is the phase's key
    with the step folded in. Metrics come back as [k]. The state is donated.
    """

    def one_device(state, pool, rows, key):
        local = jax.tree.leaves(rows)[0].shape[1]
        # Noise is keyed by this number, not by the device, so it does not depend on how many there
        # are.
        position = jax.lax.axis_index(AXIS) * local + jnp.arange(local)

        def one_step(state, row):
            # On one device a row is {"index": int32[B / devices]}, or the batch itself.
            batch = row
            if pool:
                batch = {name: array[row["index"]] for name, array in pool.items()}
            # The step comes from the state, so a resumed training folds in the same numbers.
            return step(state, {**batch, "position": position}, jax.random.fold_in(key, state.step))

        # A scan of one step costs a CPU several times the step itself.
        if jax.tree.leaves(rows)[0].shape[0] > 1:
            return jax.lax.scan(one_step, state, rows)
        # The same shapes as a scan over one step: rows lose their axis of length 1, metrics gain
        # one.
        state, metrics = one_step(state, jax.tree.map(lambda x: x[0], rows))
        return state, jax.tree.map(lambda x: x[None], metrics)

    return jax.pmap(
        one_device,
        axis_name=AXIS,
        in_axes=(None, None, 0, None),
        # None: results have no axis of devices. pmap takes all copies to be equal without a look;
        # `check_replicas` looks.
        out_axes=(None, None),
        # The new state takes the memory of the old one; large networks would not fit twice.
        donate_argnums=(0,),
        devices=devices(),
    )


def limit_in_flight(results: deque[Tree], newest: Tree, steps: int = 1) -> None:
    """Notes the result of a dispatch, and blocks while about IN_FLIGHT steps are in flight."""
    results.append(newest)
    # At least two dispatches stay in flight, so that a device need not wait for the host.
    if len(results) > max(2, IN_FLIGHT // steps):
        jax.block_until_ready(results.popleft())


def map_over_devices(function: Callable) -> Callable:
    """Maps `function(shared, rows)` over devices; rows are host arrays [N,...], as is the result.

    shared is replicated. N must be a multiple of the device count. Every process has the whole
    result on its host when a call returns.
    """
    program = jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), out_axes=0, devices=devices())

    def call(shared: Tree, rows: Tree) -> Tree:
        out = jax.device_get(program(shared, shard(rows)))
        # [devices, N / devices, ...] -> [N, ...], of this process's devices.
        joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
        return multihost.gather(joined)

    return call


def check_replicas(tree: Tree, where: str) -> None:
    """Raises RunError, naming the leaf, unless every device of every process holds the same bits.

    They differ where a step lacks a mean over devices.
    """
    if jax.device_count() == 1:
        return
    every = fingerprints(tree)
    differs = (every != every[0]).any(axis=0)
    for (path, _), differ in zip(
        jax.tree_util.tree_flatten_with_path(tree)[0], differs, strict=True
    ):
        if differ:
            raise RunError(f"{where}: devices disagree on {jax.tree_util.keystr(path)}")


def fingerprints(tree: Tree) -> np.ndarray:
    """uint32[devices,leaves]: a hash of each device's copy of each leaf of a replicated tree.

    The sum modulo 2^32 of its mixed 32-bit words. A change of one word always changes it, and of
    several with all but certainty. Sums of integers are the same in any order.
    """
    if jax.default_backend() != "cpu":
        # Each device reads its own copy; only the hashes travel.
        found: np.ndarray = _device_fingerprints()(tree, np.zeros(jax.device_count(), np.uint8))
        return found
    # The devices' memory is the host's here, and the program takes seconds to compile.
    copies = [leaf.addressable_shards for leaf in jax.tree.leaves(tree)]
    own = [
        [_host_fingerprint(np.asarray(copy[device].data)) for copy in copies]
        for device in range(jax.local_device_count())
    ]
    return multihost.gather(np.array(own, np.uint32).reshape(len(own), -1))


def _mixed(words: Any, place: Any) -> Any:
    """uint32[N] words and their places 0.. -> uint32[N], NumPy or JAX: one to one for each place.

    The finalizer of MurmurHash3 (Appleby, public domain), on the word xor a number of its place.
    Without it the sum would not see two changed signs.
    """
    mixed = words ^ (place * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


def _host_fingerprint(array: np.ndarray) -> np.uint32:
    words = np.ravel(array).view(f"uint{8 * min(array.dtype.itemsize, 4)}").astype(np.uint32)
    return np.sum(_mixed(words, np.arange(len(words), dtype=np.uint32)), dtype=np.uint32)


@cache
def _device_fingerprints() -> Callable:
    """The same on the devices."""

    def one(leaf: jax.Array) -> jax.Array:
        kind = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
        bits = leaf.astype(kind) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, kind)
        words = bits.astype(jnp.uint32).reshape(-1)
        return jnp.sum(_mixed(words, jax.lax.iota(jnp.uint32, words.size)), dtype=jnp.uint32)

    def all_of_them(tree: Tree, _: jax.Array) -> jax.Array:
        return jnp.stack([one(leaf) for leaf in jax.tree.leaves(tree)])[None]

    return map_over_devices(all_of_them)
