"""Progress for people, JSON lines for programs; ends a run whose loss is not finite."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfloop_jax.errors import RunError
from selfloop_jax.runtime import store
from selfloop_jax.runtime.tensorboard import TensorBoard

NOT_SCALARS = {"generation", "phase", "step"}  # what a line of metrics.jsonl is about
EVERY_SECONDS = 10.0  # between two lines of progress where there is no terminal


class Metrics:
    """Appends lines to metrics.jsonl, and scalars to TensorBoard where that is switched on.

    After a resume a step can be logged again: then its last line counts.
    """

    def __init__(self, path: Path, tensorboard: TensorBoard | None = None):
        self.path = path
        self.tensorboard = tensorboard

    def write(self, **fields: Any) -> None:
        """Appends one line; it is handed to the kernel on return."""
        if not store.leading:
            return
        # Opened for each line, so that a killed process loses none.
        with open(self.path, "a") as file:
            file.write(json.dumps(fields) + "\n")
        if self.tensorboard and "event" not in fields:
            # Events, such as `resumed`, carry no numbers.
            numbers = {name: fields[name] for name in fields.keys() - NOT_SCALARS}
            prefix = f"generation_{fields['generation']}/{fields['phase']}"
            self.tensorboard.scalars(prefix, numbers, fields["step"])


class Progress:
    """One phase's progress: a status line on a terminal, a line an interval elsewhere.

    Metrics stay on the device until an interval is over, and are fetched while the next one runs.
    """

    def __init__(self, metrics: Metrics, generation: int, phase: str, every_steps: int):
        self.metrics = metrics
        self.generation = generation
        self.phase = phase
        self.every_steps = every_steps
        self.where = f"generation {generation}, {phase}"
        self.rate = 0.0

    def begin(self, done: int, total: int, images_per_step: int) -> None:
        """Starts the clock at `done` of `total` steps."""
        self.first = done
        self.done = done
        self.total = total
        self.images = images_per_step
        self.started = time.perf_counter()
        self.shown = self.started
        self.waiting: list[tuple[int, Any]] = []
        self.ready: list[tuple[int, Any]] = []
        if done:
            say(f"{self.where}: resumed at step {done} of {total}")
            self.metrics.write(
                generation=self.generation, phase=self.phase, step=done, event="resumed"
            )

    def record(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the dispatch that ended at step `done`, unread."""
        self.waiting.append((done, metrics))
        # A dispatch can hold several steps, so `done` can pass a multiple without meeting it.
        if done // self.every_steps > self.done // self.every_steps:
            # One interval later they are computed, so that fetching does not wait for a device.
            self._fetch(self.ready)
            self.ready = self.waiting
            self.waiting = []
        self.done = done

    def flush(self) -> None:
        """Reads all that is outstanding."""
        self._fetch(self.ready + self.waiting)
        self.ready = []
        self.waiting = []

    def advance(self, done: int) -> None:
        """Progress of a phase without metrics."""
        self.done = done
        self._show(done, "")

    def end(self) -> None:
        """Closes the status line."""
        self.rate = self._rate()
        if sys.stderr.isatty() and store.leading:
            sys.stderr.write("\r\x1b[K")
        # A phase that was resumed after its last step has no rate.
        if self.done > self.first:
            say(f"{self.where}: {self.total} steps, {self.rate:.0f} images/s")

    def _fetch(self, items: list[tuple[int, Any]]) -> None:
        """Writes means over an interval; RunError on the first loss that is not finite."""
        if not items:
            return
        # One call for all, so that the copies overlap.
        values = jax.device_get([metrics for _, metrics in items])
        for (done, _), value in zip(items, values, strict=True):
            # Each value is float32[k], one number per step of the dispatch, and `done` is the last
            # of them.
            bad = np.flatnonzero(~np.isfinite(value["loss"]))
            if len(bad):
                step = done - len(value["loss"]) + 1 + bad[0]
                raise RunError(f"{self.where}, step {step}: loss is {value['loss'][bad[0]]}")
        done = items[-1][0]
        means: dict[str, float] = {}
        for name in values[0]:
            means[name] = float(np.mean([value[name] for value in values]))
        line = {"generation": self.generation, "phase": self.phase, "step": done, **means}
        self.metrics.write(**line, images_per_second=round(self._rate(), 1))
        self._show(done, f"loss {means['loss']:.4f}  ")

    def _rate(self) -> float:
        """Images per second that were dispatched; their metrics are read an interval later."""
        elapsed = time.perf_counter() - self.started
        return (self.done - self.first) * self.images / max(elapsed, 1e-9)

    def _show(self, done: int, text: str) -> None:
        now = time.perf_counter()
        rate = self._rate()
        # A terminal overwrites its line. Elsewhere, as in the log of a batch job, every line stays.
        terminal = sys.stderr.isatty()
        if now - self.shown < (0.2 if terminal else EVERY_SECONDS):
            return
        self.shown = now
        left = (self.total - self.done) * self.images / max(rate, 1e-9)
        line = (
            f"{self.where}: step {done}/{self.total}  {text}{rate:.0f} images/s  {left:.0f} s left"
        )
        if terminal and store.leading:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            say(line)


def say(text: str) -> None:
    """Prints one line for the user, on process 0."""
    if store.leading:
        # A name that is not UTF-8, as of a file, cannot be printed as it is.
        text = text.encode(errors="backslashreplace").decode()
        print(text, file=sys.stderr, flush=True)
