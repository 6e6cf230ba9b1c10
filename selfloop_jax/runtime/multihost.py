"""Runs of several processes: connecting, broadcasting, barriers, agreeing.

All processes run the same program on the same config and hold the same host arrays; each feeds its
own devices. Only process 0 writes plain files and prints. With a single process the functions here
do nothing.
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

from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import environment, store

T = TypeVar("T")
CONNECT_SECONDS = 120.0  # that processes wait for each other at the start
HEARTBEAT_SECONDS = 30  # a process that is silent for as long counts as dead
MEETING_SECONDS = 2.0  # about how often processes exchange whether one of them received SIGTERM
MEETING_CALLS = 20  # and after how many dispatches at most, since the pace can change


# Where launchers say how many processes they have started, each inside such a process alone.
STARTED = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def connect(processes: int) -> None:
    """Joins the processes of a run; call it before the first use of a backend.

    processes: those of `parallel.processes`, 0: as many as were started. Their number and ranks
    come from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from the environment
    of a cluster (SLURM, TPU, Open MPI). UsageError where they are not as many as configured, do not
    connect, or a variable holds no such number.
    """
    _connect(processes)
    environment.start_backend()
    # Always, since a backend can bring processes of its own, as that of a TPU slice does: several
    # that each believe to be alone would write to one workdir.
    if processes and jax.process_count() != processes:
        _refuse(processes, jax.process_count())
    store.leading = is_primary()


def _connect(processes: int) -> None:
    numbers = {name: _number(name) for name in STARTED}
    started = next((number for number in numbers.values() if number is not None), None)
    rank = _number("JAX_PROCESS_ID")
    if processes and started is not None and started != processes:
        _refuse(processes, started)
    expected = processes or started
    if rank is not None and rank >= (expected or 1):
        raise UsageError(
            f"JAX_PROCESS_ID = {rank}: must be below {expected or 1}, the number of processes"
        )
    # The workers of a TPU slice are known to JAX alone.
    asks_jax = expected is None and environment.expected_platform() == "tpu"
    if expected in (None, 1) and not asks_jax:
        return
    # `initialize` blocks in C++ and its own end is an abort. A timer in another thread can still
    # print one line and exit.
    patience = threading.Timer(CONNECT_SECONDS, _give_up, [expected])
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            os.environ.get("JAX_COORDINATOR_ADDRESS"),
            numbers["JAX_NUM_PROCESSES"],
            rank,
            initialization_timeout=int(CONNECT_SECONDS) + 60,  # its own end is an abort
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        if asks_jax:
            return  # a TPU outside Google's cloud
        why = str(error).splitlines()[0]
        raise UsageError(
            f"parallel.processes = {processes}: could not connect to the other processes: {why}"
        ) from error
    finally:
        patience.cancel()


def _number(variable: str) -> int | None:
    """The whole number in an environment variable; None where it is unset or empty."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"{variable} = {text}: must be a whole number")
    return int(text)


def _give_up(expected: int | None) -> None:
    """Ends this process, which is blocked in a call that cannot be interrupted."""
    print(
        f"error: not all {expected or 'the'} processes connected to "
        f"{os.environ.get('JAX_COORDINATOR_ADDRESS', 'the coordinator')} within "
        f"{CONNECT_SECONDS:g} seconds",
        file=sys.stderr,
        flush=True,
    )
    os._exit(UsageError.exit_code)


def abort(code: int) -> None:
    """Ends a failed process at once: the others would wait for it. Alone, it returns."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        # A normal exit would run JAX's shutdown, which waits for the processes that are still at
        # work.
        os._exit(code)


def _refuse(processes: int, started: Any) -> None:
    raise UsageError(
        f"parallel.processes = {processes}: must be {started}, as many as were started"
    )


def is_primary() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def gather(tree: T) -> T:
    """Host arrays [N,...] of every process, concatenated in the order of processes, on all."""
    if jax.process_count() == 1:
        return tree
    # Tiled: [N,...] of each process become [processes * N,...], without a further axis.
    gathered: T = multihost_utils.process_allgather(tree, tiled=True)
    return gathered


def broadcast(value: T) -> T:
    """The bool, number or array of process 0, on all processes; they wait for it."""
    if jax.process_count() == 1:
        return value
    # `gather` joins along the first axis, so the value becomes one row per process.
    found: Any = gather(np.asarray(value)[None])[0]
    # A NumPy scalar would not be a bool or int any more.
    kind: Any = type(value)
    return kind(found) if np.isscalar(value) else found


def barrier() -> None:
    """Waits for all processes: afterwards they see what process 0 wrote before."""
    broadcast(0)


def process_zero_first(make: Callable[[], T]) -> T:
    """`make()` on process 0 and then on the others, which find its files on disk."""
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
    # Only arrays of equal length can be gathered, so the texts are padded with blanks.
    sizes = gather(np.array([len(json.dumps(mine))]))
    padded = json.dumps(mine).ljust(int(sizes.max())).encode()
    # Every process compares all of them, so all fail with the same line and none waits for another.
    every = [json.loads(bytes(row)) for row in gather(np.frombuffer(padded, np.uint8)[None])]
    for process, other in enumerate(every):
        for name in dict.fromkeys([*every[0], *other]):
            if every[0].get(name) != other.get(name):
                first = every[0].get(name)
                raise UsageError(
                    f"{name} = {other.get(name)} on process {process}: must be {first}, as on "
                    "process 0"
                )


def agree(ask: Callable[[], bool], seconds: float = MEETING_SECONDS) -> Callable[[], bool]:
    """An `ask` that becomes true on all processes at the same call, once it is true on one.

    All processes must call it equally often. They exchange answers about every `seconds`, after a
    number of calls that process 0 estimates from its pace.
    """
    if jax.process_count() == 1:
        return ask
    most = round(MEETING_CALLS * seconds / MEETING_SECONDS)
    # The first call exchanges at once: there is no pace yet to estimate from.
    left = 1
    calls = 0
    since = time.perf_counter()

    def together() -> bool:
        nonlocal left, calls, since
        left -= 1
        calls += 1
        if left:
            return False
        pace = (time.perf_counter() - since) / calls
        answers = gather(np.array([[float(ask()), pace]]))
        # The pace of process 0 alone counts. With estimates of their own, processes would exchange
        # at different calls and block.
        left = int(np.clip(seconds / answers[0, 1], 1, most))
        calls = 0
        since = time.perf_counter()
        return bool(answers[:, 0].any())

    return together
