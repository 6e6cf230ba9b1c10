"""The processes of one run, one or several on each host: how they find, tell and wait for each other.

All of them run the same program on the same config and hold the same host arrays; each feeds its
own devices. Process 0 leads: it alone writes plain files and speaks. With a single process nothing
here does anything.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store

T = TypeVar("T")


CONNECT_SECONDS = 120.0  # that processes wait for each other at the start


HEARTBEAT_SECONDS = 30  # a process that is silent for as long counts as dead


MEETING_SECONDS = 2.0  # about how often at least the processes tell each other of a SIGTERM


MEETING_CALLS = 20  # and after how many dispatches at most: the pace of the last ones is no promise


def connect(processes: int) -> None:
    """Joins the processes of a run where `parallel.processes` are several; before the first use of a backend.

    Who they are, a cluster's own environment says (SLURM, TPU, Open MPI), or
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. UsageError where they are others
    than configured or do not meet.
    """
    told = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
    if told["num_processes"] and int(told["num_processes"]) != processes:
        _refuse(processes, told["num_processes"])
    if processes == 1:
        return
    patience = threading.Timer(CONNECT_SECONDS, _give_up, [processes])
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            os.environ.get("JAX_COORDINATOR_ADDRESS"),
            **{name: int(value) for name, value in told.items() if value},
            initialization_timeout=int(CONNECT_SECONDS) + 60,  # its own end is an abort
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(
            f"parallel.processes = {processes}: no word of the others: {why}"
        ) from error
    finally:
        patience.cancel()
    if jax.process_count() != processes:
        _refuse(processes, jax.process_count())
    store.leading = is_primary()


def _give_up(processes: int) -> None:
    """Ends this process, which waits in a call that cannot be interrupted."""
    print(
        f"error: parallel.processes = {processes}: not all of them met at "
        f"{os.environ.get('JAX_COORDINATOR_ADDRESS', 'the coordinator')} within "
        f"{CONNECT_SECONDS:g} seconds",
        file=sys.stderr,
        flush=True,
    )
    os._exit(UsageError.exit_code)


def abort(code: int) -> None:
    """Ends a process that failed without waiting for the others, who would wait for it; alone, returns."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _refuse(processes: int, started: Any) -> None:
    raise UsageError(
        f"parallel.processes = {processes}: allowed is {started}, as many as were started"
    )


def is_primary() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def gather(tree: T) -> T:
    """Host arrays [N,...] of every process, in the order of processes, as [processes * N,...] on all."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def broadcast(value: T) -> T:
    """Process 0's bool, number or array on all processes, which wait for it."""
    if jax.process_count() == 1:
        return value
    return (
        type(value)(gather(np.asarray(value)[None])[0])
        if np.isscalar(value)
        else gather(value[None])[0]
    )


def barrier() -> None:
    """Waits until all processes are here: what process 0 wrote before is on disk after."""
    broadcast(0)


def process_zero_first(make: Callable[[], T]) -> T:
    """`make()` on process 0 and then on the others, who find what it prepared on disk."""
    if is_primary():
        made = make()
        barrier()
        return made
    barrier()
    return make()


def check_same_on_all(facts: store.Json) -> None:
    """Raises UsageError naming the first fact in which a process differs from process 0."""
    if jax.process_count() == 1:
        return
    mine = store.flatten(json.loads(json.dumps(store.jsonable(facts))))
    sizes = gather(np.array([len(json.dumps(mine))]))
    padded = json.dumps(mine).ljust(int(sizes.max())).encode()
    every = [json.loads(bytes(row)) for row in gather(np.frombuffer(padded, np.uint8)[None])]
    for process, other in enumerate(every):
        for name in dict.fromkeys([*every[0], *other]):
            if every[0].get(name) != other.get(name):
                raise UsageError(
                    f"{name} = {other.get(name)} on process {process}: allowed is {every[0].get(name)}, "
                    "as on process 0"
                )


def check_equal(digest: str, where: str) -> None:
    """Raises RunError unless all processes have the same sha256."""
    every = gather(np.frombuffer(bytes.fromhex(digest), np.uint8)[None])
    if (every != every[0]).any():
        raise RunError(f"{where}: processes disagree")


def agree_on_stop(stop: Callable[[], bool]) -> Callable[[], bool]:
    """`stop` as all processes agree on it: asked in step, true on all at the same call once true on one.

    They exchange answers after a number of calls that process 0 estimates from its pace.
    """
    if jax.process_count() == 1:
        return stop
    left, calls, since = 1, 0, time.perf_counter()

    def together() -> bool:
        nonlocal left, calls, since
        left, calls = left - 1, calls + 1
        if left:
            return False
        pace = (time.perf_counter() - since) / calls
        answers = gather(np.array([[float(stop()), pace]]))
        left = int(np.clip(MEETING_SECONDS / answers[0, 1], 1, MEETING_CALLS))
        calls, since = 0, time.perf_counter()
        return bool(answers[:, 0].any())

    return together
