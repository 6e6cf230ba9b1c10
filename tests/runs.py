"""The shipped quickstart, shrunk: in a process of its own as a user runs it, or in this one."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from selfloop_jax import main as program
from selfloop_jax.runtime import environment

Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).parent.parent
CONFIG = "--config=configs/quickstart.py"
# As many devices as this process has (conftest.py), so that both kinds of runs have equal bits.
SHRUNK = [
    f"--config.{override}"
    for override in (
        *("loop.generations=3", "report.enabled=False", "parallel.cpu_devices=4"),
        *("diffusion.unet.channels=8", "diffusion.unet.multipliers=(1,)", "diffusion.batch=32"),
        "diffusion.unet.attention=(8,)",
        *("diffusion.steps=24", "diffusion.later.steps=16", "checkpoint.interval_steps=8"),
        *("classifier.width=4", "classifier.stages=(1,)", "classifier.batch=32"),
        *("classifier.steps=8", "classifier.later.steps=8", "checkpoint.keep=2"),
        *("sample.count=200", "sample.steps=3", "sample.batch_per_device=10"),
        *("measure.batch=360", "measure.generated_only=first", "measure.replicates=100"),
        *("data.bias.per_class=(.3,.3,.3,.3,.3,.7,.7,.7,.7,.7)", "log.every_steps=4"),
    )
]


def command(workdir: Path, *extra: str) -> list[str]:
    """The command line of a shrunk run; `extra` overrides what it sets."""
    shrunk = [CONFIG, *SHRUNK, f"--workdir={workdir}", *extra]
    return [sys.executable, "-m", "selfloop_jax.main", *shrunk]


def main(*arguments: object, environment: dict[str, str] | None = None) -> Done:
    """`python -m selfloop_jax.main` with nothing but `arguments`, from the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", "selfloop_jax.main", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def run(workdir: Path, *extra: str) -> Done:
    """A shrunk run to its end, in a process of its own."""
    return main(*command(workdir, *extra)[3:])


def call(*arguments: object) -> Done:
    """`main` in this process, which has its imports and devices (conftest.py): in milliseconds."""
    argv = ["selfloop_jax.main", *map(str, arguments)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.chdir(ROOT),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(environment, "configure"),
            warnings.catch_warnings(action="ignore", category=DeprecationWarning),  # as Python does
        ):
            code = program.main(argv)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def call_run(workdir: Path, *extra: str) -> Done:
    """A shrunk run to its end, in this process."""
    return call(*command(workdir, *extra)[3:])


# Seconds without any sign of life after which a test gives up on a process. Compiling gives none.
PATIENCE = 900.0


class Process:
    """A process with its log in a file beside `folder`; waited for while files change there."""

    def __init__(
        self, command: list[str], folder: Path, name: str = "output", env: dict | None = None
    ):
        self.folder = folder
        self.output = folder.parent / f"{name}.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=file
            )
        self.send_signal = self.process.send_signal

    def kill(self) -> None:
        """Kills it where it still runs, and waits for its end."""
        self.process.kill()
        self.process.wait()

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def wait(self, condition: Callable[[], object], every: float) -> None:
        """Waits for the condition or the end; fails where the process gives no sign of life."""
        seen: object = None
        since = time.monotonic()
        checked = 0.0
        while self.running() and not condition():
            time.sleep(every)
            now = time.monotonic()
            if now - checked < 1:
                continue
            checked = now
            signs = {path: _changed(path) for path in [self.output, *_files(self.folder)]}
            if signs != seen:
                seen, since = signs, now
            elif now - since > PATIENCE:
                self.kill()
                said = self.output.read_text()
                raise AssertionError(f"no sign of life for {PATIENCE:.0f} s; it said:\n{said}")

    def end(self) -> tuple[int, str]:
        """Waits for the end; returns exit code and log."""
        self.wait(lambda: False, every=0.05)
        return self.process.returncode, self.output.read_text()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        port: int = sock.getsockname()[1]
    return port


def one_of_two(process: int, port: int) -> dict[str, str]:
    """The environment of one of two processes that make a run together."""
    names = {
        "COORDINATOR_ADDRESS": f"localhost:{port}",
        "NUM_PROCESSES": "2",
        "PROCESS_ID": str(process),
    }
    return {**os.environ, **{f"JAX_{name}": value for name, value in names.items()}}


# Of a run that two processes make: two generations, two devices for each process.
TWO = ["--config.loop.generations=2", "--config.parallel.cpu_devices=2"]


# The program, in a process that keeps what it compiles. Process 1 has other keys on the CPU than
# process 0, and JAX lets process 0 alone write: process 1 would compile everything at every start.
KEEPING = """
import sys
from jax._src import compiler, distributed
def write(*arguments, write=compiler._cache_write, state=distributed.global_state):
    me, state.process_id = state.process_id, 0
    write(*arguments)
    state.process_id = me
compiler._cache_write = write
from selfloop_jax import main
sys.exit(main.program())
"""


def start_two(workdir: Path, *extra: str, second: tuple[str, ...] = ()) -> list[Process]:
    """Starts both processes of a shrunk run; `second` are further arguments of process 1."""
    port = free_port()
    processes = []
    for process in (0, 1):
        line = command(workdir, *TWO, *extra, *(second if process else ()))
        if process:
            line = [sys.executable, "-c", KEEPING, *line[3:]]
        processes.append(Process(line, workdir, f"process{process}", one_of_two(process, port)))
    return processes


def interrupt_two(
    workdir: Path, file: str, process: int, sent: int, frozen: float = 0.0
) -> tuple[list[int], list[str]]:
    """Signals one process once a file exists; returns exit codes and output of both.

    frozen: seconds that it does not run before it gets the signal, as on a machine under load.
    """
    processes = start_two(workdir)
    signalled, other = processes[process], processes[1 - process]
    moment = workdir / file
    try:
        signalled.wait(lambda: moment.exists() or not other.running(), every=0.01)
        if frozen:
            signalled.send_signal(signal.SIGSTOP)
            time.sleep(frozen)
        signalled.send_signal(sent)
        if frozen:
            signalled.send_signal(signal.SIGCONT)
    except BaseException:
        for each in processes:
            each.kill()
        raise
    return end_all(processes)


def end_all(processes: list[Process]) -> tuple[list[int], list[str]]:
    """Waits for all processes; returns their exit codes and what they printed."""
    try:
        codes, said = zip(*(process.end() for process in processes), strict=True)
    finally:
        for process in processes:
            process.kill()  # one that is left, where another gave no sign of life
    return list(codes), list(said)


def _files(folder: Path) -> list[Path]:
    """All files below a folder whose subfolders may vanish meanwhile, which rglob does not bear."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def _changed(path: Path) -> int | None:
    """When a file was last written; None where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
