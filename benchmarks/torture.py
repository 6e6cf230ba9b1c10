"""Ends, breaks and damages small runs in every way it can, and checks what a run promises.

    python -m benchmarks.torture [--kill=1000] [--fault=1000] [--flip=500] ... [--jobs=2] > FILE

Kinds, each with a number of trials:

    kill      SIGKILL at a uniformly random time of a run, then the same command again, and again
    stop      the same with SIGTERM
    fault     a random file operation in the workdir fails: ENOSPC, EIO or EACCES, once or for good
    memory    the process may not grow any more from a random time on
    clock     the clock of the day jumps by up to ten years at a random time
    vanish    the folder above the workdir is moved away at a random time, and later back
    writers   two processes get the same workdir at random times
    flip      one bit of one file of a finished run is another, then a program reads the run
    truncate  one file of a finished run is cut off at a random place, then likewise

What must hold: the same command ends in the digests of an undisturbed run, or one line names what
is damaged; what was committed stays as it was; a program that reads a damaged run says so or gives
what it gives without the damage. The output is a JSON line for each trial, and one with the counts
of all outcomes at the end. The exit code is 1 where an outcome is `unexplained`.

Linux with a C compiler; two cores make about 20 trials a minute.
"""

import argparse
import collections
import contextlib
import ctypes
import hashlib
import importlib
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/quickstart.py"
RUN = [
    f"--config.{override}"
    for override in (
        *("loop.generations=2", "report.enabled=False", "parallel.cpu_devices=1"),
        *("diffusion.unet.channels=8", "diffusion.unet.multipliers=(1,)", "diffusion.batch=32"),
        *("diffusion.unet.attention=()", "diffusion.steps=24", "diffusion.later.steps=16"),
        *("checkpoint.interval_steps=8", "checkpoint.keep=2", "classifier.network=lenet"),
        *("classifier.batch=32", "classifier.steps=8"),
        *("classifier.later.steps=8", "sample.count=100", "sample.steps=2"),
        *("sample.batch_per_device=50", "measure.batch=360", "measure.generated_only=first"),
        *("measure.replicates=50", "log.every_steps=4"),
    )
]
CONTROL = [*RUN, "--config.loop.control=no_synthetic"]  # trains classifiers alone
DEFAULTS = {
    **{"kill": 1000, "stop": 100, "fault": 1000, "memory": 50, "clock": 50, "vanish": 50},
    **{"writers": 50, "flip": 500, "truncate": 200},
}
ERRORS = {"ENOSPC": 28, "EIO": 5, "EACCES": 13}
PATIENCE = 300.0  # seconds after which a process hangs; a run takes some


IMPORTING = "importing"  # the name of the run that says what it has imported


class Plan(ctypes.Structure):
    """What `faults.c` shares with this process: `struct plan` there."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("count", "fail_at", "error", "stays", "failed")),
        ("shift", ctypes.c_long),
        ("what", ctypes.c_char * 512),
        ("root", ctypes.c_char * 512),
    ]


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code, minus the signal where one ended it, and stderr."""

    code: int
    said: str
    out: str

    @property
    def line(self) -> str:
        """Its last line."""
        lines = self.said.strip().splitlines()
        return lines[-1] if lines else ""

    @property
    def refused(self) -> bool:
        """Whether it ended as the program ends: with one line of an error."""
        one = self.said.count("\nerror: ") + self.said.startswith("error: ") == 1
        return self.code in (1, 2) and one and "Traceback" not in self.said


class Process:
    """A program of the package in a fork of this process, which has its imports, but no backend."""

    def __init__(self, module: str, arguments: Sequence[str], folder: Path, name: str = "output"):
        self.files = [folder / f"{name}.err", folder / f"{name}.out"]
        self.ended: Ended | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(module, arguments)

    def _run(self, module: str, arguments: Sequence[str]) -> None:
        code = 99
        try:
            os.chdir(ROOT)
            for number, path in ((2, self.files[0]), (1, self.files[1])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            PROGRAMS[module](arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 98
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
                if self.files[0].stem == IMPORTING:
                    self.files[1].write_text("\n".join(sys.modules))
            os._exit(code)

    def wait(self, seconds: float = PATIENCE) -> Ended | None:
        """Waits for its end; None where it has not ended after so many seconds."""
        until = time.monotonic() + seconds
        while self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                out, err = (path.read_text(errors="replace") for path in reversed(self.files))
                self.ended = Ended(os.waitstatus_to_exitcode(status), err, out)
            elif time.monotonic() >= until:
                break
            else:
                time.sleep(0.002)
        return self.ended

    def end(self) -> Ended:
        """Waits for its end; a process that hangs is killed and has code 97."""
        ended = self.wait()
        if ended is None:
            os.kill(self.pid, signal.SIGKILL)
            killed = self.wait()
            assert killed is not None
            self.ended = ended = Ended(97, killed.said, killed.out)
        return ended


def _program(module: str, function: str) -> Callable[[Sequence[str]], None]:
    def call(arguments: Sequence[str]) -> None:
        program = importlib.import_module(module)
        sys.exit(getattr(program, function)(arguments))

    return call


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "main": _program("selfloop_jax.main", "program"),
    "sampling": _program("selfloop_jax.sampling.__main__", "program"),
    "export": _program("selfloop_jax.export", "program"),
    "report": _program("selfloop_jax.report.__main__", "main"),
}


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its flags, where it is, what it took, and its digests."""

    flags: Sequence[str]
    workdir: Path
    seconds: float
    operations: int
    digests: list[dict]


class Bench:
    """A folder with a workdir to disturb, and the undisturbed runs that it is compared with."""

    def __init__(self, folder: Path, references: dict[str, Reference], seed: str = ""):
        self.folder = folder
        self.random = random.Random(seed)
        self.references = references
        self.results: dict[str, str] = {}  # what each reader gives of the undisturbed loop
        self.workdir = folder / "above" / "run"
        self.workdir.parent.mkdir(parents=True)
        self.plan = Plan.from_buffer(mmap.mmap(-1, ctypes.sizeof(Plan)))
        ctypes.CDLL(os.environ["LD_PRELOAD"]).use_plan(ctypes.byref(self.plan))

    def fresh(self, kind: str = "") -> None:
        """Removes the run; the next one is of a random kind, or of this one."""
        # A loop takes three times as long as its control.
        self.run = self.references[kind or self.random.choice(("loop", *["control"] * 2))]
        self.reach = self.run.seconds  # seconds in which something happens to it
        shutil.rmtree(self.workdir.parent, ignore_errors=True)
        self.workdir.parent.mkdir(parents=True, exist_ok=True)

    def start(self, name: str = "output") -> Process:
        """The run's command."""
        arguments = [CONFIG, *self.run.flags, f"--workdir={self.workdir}"]
        return Process("main", arguments, self.folder, name)

    def plan_faults(self, **fields: int) -> None:
        """Sets the plan of `faults.c`; without fields none fails."""
        ctypes.memset(ctypes.byref(self.plan), 0, ctypes.sizeof(Plan))
        for name, value in fields.items():
            setattr(self.plan, name, value)
        if fields:
            self.plan.root = str(self.workdir.parent).encode()

    def what_failed(self) -> str:
        """The operation that failed, and its path without the numbers in it."""
        text = bytes(self.plan.what).decode(errors="replace")
        return kind_of(Path(text.replace(f"{self.folder}/", "")))

    def check(self, ended: Ended, committed: dict[str, str]) -> str | None:
        """Why a run that ended by itself without an error is not right; None: it is."""
        if ended.code:
            return f"exit code {ended.code}: {ended.line}"
        if digests(self.workdir) != self.run.digests:
            return "its digests are not those of an undisturbed run"
        return lost(committed, self.workdir)


def digests(workdir: Path) -> list[dict]:
    """The digests of all artifacts and parents, generation by generation."""
    records = [json.loads(path.read_text()) for path in sorted(workdir.glob("gen_*/record.json"))]
    return [{**record["digests"], **record["parents"]} for record in records]


def committed(workdir: Path) -> dict[str, str]:
    """sha256 of the files that are committed: records, and the files of phases that are done."""
    return {
        path.relative_to(workdir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in workdir.glob("gen_*/*.json")
    }


def lost(before: dict[str, str], workdir: Path) -> str | None:
    """What of the committed files is gone or another one; None: nothing."""
    now = committed(workdir)
    return next((f"{name} is lost" for name in before if now.get(name) != before[name]), None)


Outcome = tuple[str, str]


def until_done(
    bench: Bench,
    disturb: Callable[[Process], str | None],
    prepare: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Starts the run again and again until it is done; an outcome for each disturbed start.

    prepare: called before each start. disturb: waits for its time and does its work; returns what
    it did, None: the run ended before.
    """
    bench.fresh()
    # A chain that never ends would be a run that loses its progress; 200 starts are far too many.
    for _ in range(200):
        before = committed(bench.workdir)
        prepare()
        process = bench.start()
        # Under load a phase can take longer than all of the undisturbed run, and would never end.
        bench.reach *= 1.05
        did = disturb(process)
        ended = process.end()
        bench.plan_faults()
        gone = lost(before, bench.workdir)
        if did is None:
            wrong = bench.check(ended, before)
            if wrong:
                yield "unexplained", wrong
            return
        if gone:
            yield "unexplained", f"{did}: {gone}"
            return
        if ended.code == 0:
            wrong = bench.check(ended, before)
            yield ("unexplained", f"{did}: {wrong}") if wrong else ("done all the same", did)
            return
        if ended.code < 0:
            yield f"ended by {signal.Signals(-ended.code).name}", did
        elif ended.code == 143 and "the same command resumes" in ended.said:
            yield "stopped, progress saved", did
        elif ended.refused:
            yield "said in one line", f"{did}: {ended.line[:300]}"
        else:
            yield "unexplained", f"{did}: exit code {ended.code}: {ended.said[-1500:]}"
            return
    yield "unexplained", "never done"


def signalled(bench: Bench, number: int) -> Callable[[Process], str | None]:
    """Sends a signal at a random time of the run."""

    def disturb(process: Process) -> str | None:
        after = bench.random.uniform(0, bench.reach)
        if process.wait(after) is not None:
            return None
        os.kill(process.pid, number)
        return f"after {after:.3f} s"

    return disturb


def kill(bench: Bench) -> Iterator[Outcome]:
    """SIGKILL at random times."""
    yield from until_done(bench, signalled(bench, signal.SIGKILL))


def stop(bench: Bench) -> Iterator[Outcome]:
    """SIGTERM at random times."""
    yield from until_done(bench, signalled(bench, signal.SIGTERM))


def fault(bench: Bench) -> Iterator[Outcome]:
    """One file operation in the workdir fails, or from then on all that write."""
    name = ""

    def prepare() -> None:
        nonlocal name
        name = bench.random.choice(list(ERRORS))
        stays = int(bench.random.random() < 0.3)
        at = bench.random.randint(1, bench.run.operations)
        bench.plan_faults(fail_at=at, error=ERRORS[name], stays=stays)
        name += " from then on" if stays else ""

    def disturb(process: Process) -> str | None:
        process.end()
        return f"{name}: {bench.what_failed()}" if bench.plan.failed else None

    yield from until_done(bench, disturb, prepare)


def memory(bench: Bench) -> Iterator[Outcome]:
    """From a random time on the process has at most a little more memory than it has then."""

    def disturb(process: Process) -> str | None:
        if process.wait(bench.random.uniform(0, bench.reach)) is not None:
            return None
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
        more = bench.random.choice([0, 2**16, 2**20, 2**24])
        limit = pages * resource.getpagesize() + more
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        return f"{more} bytes more"

    yield from until_done(bench, disturb)


def clock(bench: Bench) -> Iterator[Outcome]:
    """The clock jumps once; the run is to be done all the same."""
    bench.fresh()
    process = bench.start()
    process.wait(bench.random.uniform(0, bench.reach))
    bench.plan.shift = bench.random.randint(-10 * 365 * 86_400, 10 * 365 * 86_400)
    did = f"{bench.plan.shift} s"
    ended = process.end()
    bench.plan_faults()
    wrong = bench.check(ended, {})
    yield ("unexplained", f"{did}: {wrong}") if wrong else ("done all the same", did)


def vanish(bench: Bench) -> Iterator[Outcome]:
    """The folder above the workdir is moved away, and back after the run's end."""
    bench.fresh()
    above = bench.workdir.parent
    away = above.with_name("away")
    process = bench.start()
    # A run that has not begun makes its folder, wherever that is.
    while not (bench.workdir / ".lock").exists() and process.wait(0) is None:
        time.sleep(0.002)
    after = bench.random.uniform(0, bench.reach)
    process.wait(after)
    before = committed(bench.workdir)
    above.rename(away)
    ended = process.end()
    did = f"{after:.3f} s after the run began"
    if above.exists():
        made = sorted(path.relative_to(above).as_posix() for path in above.rglob("*"))[:20]
        shutil.rmtree(above)
        away.rename(above)
        yield "unexplained", f"{did}: made again what was moved away: {made}; {ended.line}"
        return
    away.rename(above)
    if ended.code and not ended.refused:
        yield "unexplained", f"{did}: exit code {ended.code}: {ended.said[-1500:]}"
        return
    again = bench.start().end()
    wrong = bench.check(again, before)
    if wrong:
        yield "unexplained", f"{did}: {wrong}"
    elif ended.code:
        yield "said in one line", f"{did}: {ended.line[:300]}"
    else:
        yield "done all the same", did


def writers(bench: Bench) -> Iterator[Outcome]:
    """A second process gets the workdir at a random time, and the first may be killed."""
    bench.fresh()
    first = bench.start("first")
    after = bench.random.uniform(0, bench.reach)
    first.wait(after)
    second = bench.start("second")
    killed = bench.random.random() < 0.5
    if killed:
        first.wait(bench.random.uniform(0, bench.reach))
        if first.ended is None:
            os.kill(first.pid, signal.SIGKILL)
    ended = [first.end(), second.end()]
    did = f"after {after:.3f} s{', the first killed' if killed else ''}"
    codes = [one.code for one in ended]
    refused = [one for one in ended if one.code == 2]
    if not all(one.code in (0, -9) or (one.refused and "is using it" in one.line) for one in ended):
        yield "unexplained", f"{did}: {codes}: {ended[0].said[-700:]} {ended[1].said[-700:]}"
        return
    wrong = bench.check(bench.start().end(), {})
    if wrong:
        yield "unexplained", f"{did}: {wrong}"
    elif refused:
        yield "one refused in one line", f"{did}: {refused[0].line[:200]}"
    else:
        yield "one after the other", f"{did}: {codes}"


def kind_of(path: Path) -> str:
    """What a file of a run is, without the numbers and hashes in its name."""
    parts = [re.sub(r"^[0-9a-f]{32}$|\d+", "N", part) for part in path.parts]
    return "/".join(parts)


def read_by(bench: Bench, reader: str) -> tuple[Ended, str]:
    """Lets a program read the run in the workdir: how it ended, and sha256 of what it gave."""
    workdir = str(bench.workdir)
    out = bench.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    run = [CONFIG, *RUN, f"--workdir={workdir}"]
    module, arguments = {
        "resume": ("main", run),
        "extend": ("main", [*run, "--config.loop.generations=3"]),
        "replay": ("main", [f"--workdir={workdir}", "--replay=1"]),
        "sample": ("sampling", [workdir, f"--out={out}", "--count=4"]),
        "export": ("export", [workdir, f"--out={out}"]),
        "report": ("report", [workdir, f"--out={out}/page.html"]),
    }[reader]
    out.parent.mkdir(exist_ok=True)
    ended = Process(module, arguments, bench.folder).end()
    given = hashlib.sha256(ended.out.encode())
    if reader in ("resume", "extend") and ended.code == 0:
        given.update(json.dumps(digests(bench.workdir)).encode())
    for path in sorted(out.rglob("*")):
        if path.is_file():
            given.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
    return ended, given.hexdigest()


READERS = ("resume", "extend", "replay", "sample", "export", "report")


def copy_reference(bench: Bench) -> None:
    """Puts a copy of the undisturbed run into the workdir."""
    bench.fresh("loop")
    shutil.copytree(bench.run.workdir, bench.workdir)


def damage(bench: Bench, change: Callable[[bytes], bytes]) -> Iterator[Outcome]:
    """One file of a finished run is changed, then a program reads the run."""
    copy_reference(bench)
    reader = bench.random.choice(READERS)
    if reader not in bench.results:
        ended, bench.results[reader] = read_by(bench, reader)
        assert ended.code == 0, ended.said
        copy_reference(bench)
    # Kinds first, so that the few records are hit as often as the many files of checkpoints.
    kinds = collections.defaultdict(list)
    for path in sorted(bench.workdir.rglob("*")):
        if path.is_file() and path.stat().st_size:
            kinds[kind_of(path.relative_to(bench.workdir))].append(path)
    path = bench.random.choice(kinds[bench.random.choice(sorted(kinds))])
    name = path.relative_to(bench.workdir)
    before = path.read_bytes()
    path.write_bytes(change(before))
    ended, given = read_by(bench, reader)
    did = f"{reader} after a change of {name}"
    if ended.code == 0 and given == bench.results[reader]:
        yield "gives what it gives without the damage", did
    elif ended.code and not ended.refused and ended.code != 1:
        yield "unexplained", f"{did}: exit code {ended.code}: {ended.said[-1500:]}"
    elif ended.code == 0 and _page_names(bench, name):
        yield "the page names the file", did
    elif ended.code == 0:
        yield "unexplained", f"{did}: gives something else, and does not say so"
    elif "Traceback" in ended.said:
        yield "unexplained", f"{did}: {ended.said[-1500:]}"
    elif any(part in ended.line for part in (name.name, *name.parts[:2])):
        yield "names the file or its folder", f"{did}: {ended.line[:300]}"
    else:
        yield "refuses in another line", f"{did}: {ended.line[:300]}"


def _page_names(bench: Bench, name: Path) -> bool:
    """Whether the report says that it leaves out what the file would show."""
    page = bench.folder / "out" / "page.html"
    text = page.read_text(errors="replace") if page.exists() else ""
    return f"{name.as_posix()}: damaged" in text or f"{name.as_posix()}: missing" in text


def flip(bench: Bench) -> Iterator[Outcome]:
    """One bit is another."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[bench.random.randrange(len(data))] ^= 1 << bench.random.randrange(8)
        return bytes(changed)

    yield from damage(bench, change)


def truncate(bench: Bench) -> Iterator[Outcome]:
    """A file ends early."""
    yield from damage(bench, lambda data: data[: bench.random.randrange(len(data))])


KINDS: dict[str, Callable[[Bench], Iterator[Outcome]]] = {
    "kill": kill,
    "stop": stop,
    "fault": fault,
    "memory": memory,
    "clock": clock,
    "vanish": vanish,
    "writers": writers,
    "flip": flip,
    "truncate": truncate,
}


def work(bench: Bench, trials: dict[str, int], pipe: int) -> None:
    """Makes a worker's share of the trials of every kind, in turn; writes a line for each."""
    left = dict(trials)
    while any(count > 0 for count in left.values()):
        for kind in [kind for kind in left if left[kind] > 0]:
            for outcome, did in KINDS[kind](bench):
                line = json.dumps({"kind": kind, "outcome": outcome, "did": did[:1800]}) + "\n"
                # At once and not too long, so the lines of two workers do not mix.
                os.write(pipe, line.encode())
                left[kind] -= 1
                if left[kind] <= 0:
                    break


def build_faults(folder: Path) -> Path:
    """Compiles `faults.c`."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each trial, then the counts; 1 where an outcome is unexplained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind, count in DEFAULTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, help=f"default {count}")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        folder = Path(temporary)
        if "faults.so" in os.environ.get("LD_PRELOAD", ""):
            return torture(args, folder)
        # The library is in a process from its start or not at all.
        variables = {**os.environ, "LD_PRELOAD": str(build_faults(folder))}
        command = [
            sys.executable,
            "-m",
            "benchmarks.torture",
            *(sys.argv[1:] if argv is None else argv),
        ]
        return subprocess.run(command, env=variables, cwd=ROOT, check=False).returncode


def torture(args: argparse.Namespace, folder: Path) -> int:
    """Makes an undisturbed run, then all trials in some processes; returns the exit code."""
    _import(["selfloop_jax.loop.runner", "selfloop_jax.studies.self_consuming"])
    references = {}
    for name, flags in (("loop", RUN), ("control", CONTROL)):
        # The first fills the compile cache and says what is imported on the way.
        for attempt in (IMPORTING, "reference"):
            bench = Bench(folder / f"{name} {attempt}", {name: Reference(flags, folder, 0, 0, [])})
            bench.fresh(name)
            bench.plan_faults(fail_at=0)
            started = time.monotonic()
            ended = bench.start(attempt).end()
            seconds = time.monotonic() - started
            if ended.code:
                print(f"error: an undisturbed run failed: {ended.said}", file=sys.stderr)
                return 1
            if attempt == IMPORTING:
                _import(ended.out.split())
        references[name] = Reference(
            flags, bench.workdir, seconds, bench.plan.count, digests(bench.workdir)
        )
        print(
            json.dumps({"run": name, "seconds": round(seconds, 2), "operations": bench.plan.count}),
            flush=True,
        )
    read, write = os.pipe()
    workers = []
    for worker in range(args.jobs):
        pid = os.fork()
        if pid == 0:
            _worker(args, worker, references, folder, write)
        workers.append(pid)
    os.close(write)
    counts = {kind: collections.Counter[str]() for kind in KINDS}
    with os.fdopen(read) as lines:
        for line in lines:
            print(line, end="", flush=True)
            trial = json.loads(line)
            counts[trial["kind"]][trial["outcome"]] += 1
    failed = [os.waitpid(pid, 0)[1] for pid in workers]
    print(json.dumps({"counts": counts}))
    return int(any(failed) or any(row["unexplained"] for row in counts.values()))


def _import(modules: Sequence[str]) -> None:
    """Imports modules once, before the forks; a backend starts in these only."""
    for module in modules:
        with contextlib.suppress(Exception):  # some are made by others, and cannot be imported
            importlib.import_module(module)


def _worker(
    args: argparse.Namespace,
    worker: int,
    references: dict[str, Reference],
    folder: Path,
    pipe: int,
) -> NoReturn:
    """Makes every `args.jobs`-th trial of each kind, and ends the process."""
    code = 1
    try:
        bench = Bench(folder / f"worker{worker}", references, f"{args.seed} {worker}")
        trials = {kind: len(range(worker, getattr(args, kind), args.jobs)) for kind in KINDS}
        work(bench, trials, pipe)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
