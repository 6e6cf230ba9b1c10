"""Shows how much of the images' variance each solver keeps, by evaluations of the network.

    python -m benchmarks.variance                # a JSON line per process, solver and evaluations
    python -m benchmarks.variance --markdown     # the tables of docs/dynamics.md
    python -m benchmarks.variance --speed        # images per second of the quickstart's U-Net

Data are Gaussian: of one dimension, with DEVIATIONS, or with the covariances of the study's images,
class by class. Their ideal denoiser is linear, so a solver is a linear map of its noise, and each
direction of the data can be followed alone. The solvers of the package run in float64 on unit
noise: shares are exact, without sampling noise. `five` is the share after five generations that
each learn the Gaussian of the one before perfectly. Clipping is left out, since it is not linear.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases, presets
from selfloop_jax import config as configs
from selfloop_jax.config import DataConfig, DiffusionConfig
from selfloop_jax.data import dataset
from selfloop_jax.diffusion import processes, solvers
from selfloop_jax.runtime import environment

DEVIATIONS = (0.5, 0.25, 0.1, 0.05)  # of data of one dimension
EVALUATIONS = (8, 10, 15, 20, 30, 50, 100, 250)
SHOWN = 15  # evaluations of the table of scalars: the default
GENERATIONS = 5


def cases_of(evaluations: tuple[int, ...]) -> Iterator[tuple[str, processes.Process, str, int]]:
    """Name of the process, process, solver and steps: every solver at about these evaluations."""
    default = DiffusionConfig(process="ddpm")
    linear = replace(default, ddpm=replace(default.ddpm, schedule="linear"))
    named = {
        "ddpm, cosine": default,
        "ddpm, linear": linear,
        "edm": DiffusionConfig(process="edm"),
    }
    for name, section in named.items():
        # An exact denoiser does not read the scale of the data.
        process = processes.build(processes.for_data(section, 1.0))
        for solver in solvers.SOLVERS:
            if solvers.SOLVERS[solver].process not in ("", name.partition(",")[0]):
                continue
            for most in evaluations:
                # The most steps of that cost: Heun's take two evaluations each.
                counts = range(1, most + 1)
                cost = solvers.SOLVERS[solver].evaluations
                yield name, process, solver, max(n for n in counts if cost(n) <= most)


def kept(process: processes.Process, solver: str, steps: int) -> Callable[[np.ndarray], np.ndarray]:
    """Variances float64[K] of Gaussian data -> those of images that the solver makes of them."""
    # A row of x per source of noise: the start, then each step of a stochastic solver.
    rows = steps + 1 if solvers.SOLVERS[solver].stochastic else 1

    def run(variance):
        def noise(i):
            return jnp.zeros((rows, variance.size)).at[i + 1].set(1.0)

        start = jnp.zeros((rows, variance.size)).at[0].set(process.prior_scale)
        denoise = partial(_ideal, process, variance)
        out = solvers.SOLVERS[solver](process, denoise, start, steps, noise)
        # The sources are independent, so their variances add.
        return jnp.sum(out**2, axis=0)

    compiled = jax.jit(run)

    def generated(variance: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(compiled(jnp.asarray(variance)))

    return generated


def _ideal(
    process: processes.Process, variance: jax.Array, x: jax.Array, time: jax.Array
) -> jax.Array:
    """E[x_0 | x] of centred Gaussian data: x [N,K], each direction with its own variance [K]."""
    if isinstance(process, processes.Ddpm):
        table = jnp.asarray(processes.alphas_bar(process.schedule, process.timesteps))
        signal = jnp.sqrt(table[time])
        noise = jnp.sqrt(1 - table[time])
    else:
        noise = time.astype(x.dtype)
        signal = jnp.ones_like(noise)
    gain = signal * variance / (signal**2 * variance + noise**2)
    return gain[None] * x


def image_sets() -> dict[str, DataConfig]:
    """The study's images by name."""
    folder = Path(__file__).parent.parent / "configs"
    quickstart, study = (
        configs.typed(presets.load(folder / f"{name}.py").get_config()).data
        for name in ("quickstart", "digits_study")
    )
    return {
        "digits, 8 px": quickstart,
        "mnist5k, 8 px": study,
        "mnist5k, 16 px": replace(study, image_size=16),
    }


def spectrum(section: DataConfig) -> np.ndarray:
    """Variances float64[K] of training images along the principal axes of each class."""
    images = dataset.load(section, seed=0).train
    variances = []
    for label in np.unique(images.label):
        pixels = images.pixels[images.label == label]
        x = pixels.reshape(len(pixels), -1) / 127.5 - 1
        values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / (len(x) - 1)
        # Directions that no image has would be 0 / 0.
        variances.append(values[values > 1e-9])
    return np.concatenate(variances)


def lines(evaluations: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """A line per case: the shares of the variance kept, of scalars and of traces."""
    parts = {str(sd): np.array([sd**2]) for sd in DEVIATIONS}
    parts |= {name: spectrum(section) for name, section in image_sets().items()}
    for name, process, solver, steps in cases_of(evaluations):
        yield {
            "process": name,
            "solver": solver,
            "evaluations": solvers.SOLVERS[solver].evaluations(steps),
            **shares(process, solver, steps, parts),
        }


def shares(
    process: processes.Process, solver: str, steps: int, parts: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """By part, the share of its trace after `one` sample set and after `five` generations.

    parts: variances float64[K] by name.
    """
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    # All parts in one call: a program per number of steps takes longer to compile than to run.
    generations = [np.concatenate(list(parts.values()))]
    next_generation = kept(process, solver, steps)
    for _ in range(GENERATIONS):
        generations.append(next_generation(generations[-1]))
    traces = [[part.sum() for part in np.split(g, ends)] for g in generations]
    found = {}
    for which, g in (("one", 1), ("five", GENERATIONS)):
        now = zip(parts, traces[g], traces[0], strict=True)
        found[which] = {part: round(float(a / b), 4) for part, a, b in now}
    return found


def markdown(found: list[dict[str, Any]]) -> str:
    """The lines as tables: of each set of images by evaluations, and of scalars at SHOWN of them.

    A cell is the share after one sample set and, in brackets, after five generations.
    """
    of_solver: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in found:
        of_solver.setdefault((line["process"], line["solver"]), []).append(line)
    tables = []
    for part in list(found[0]["one"])[len(DEVIATIONS) :]:
        # Heun's evaluations are odd; each column takes the most that it allows.
        counts = [line["evaluations"] for line in next(iter(of_solver.values()))]
        rows = [f"| {part} | | {' | '.join(map(str, counts))} |", "|---" * (2 + len(counts)) + "|"]
        for (process, solver), of_counts in of_solver.items():
            cells = [f"{line['one'][part]:.3f} ({line['five'][part]:.3f})" for line in of_counts]
            rows.append(f"| {process} | {solver} | {' | '.join(cells)} |")
        tables.append("\n".join(rows))
    names = list(map(str, DEVIATIONS))
    rows = [f"| {SHOWN} evaluations | | sd {' | sd '.join(names)} |", "|---" * 6 + "|"]
    for (process, solver), of_counts in of_solver.items():
        affordable = [line for line in of_counts if line["evaluations"] <= SHOWN]
        line = max(affordable, key=lambda line: line["evaluations"])
        cells = [f"{line['one'][name]:.3f} ({line['five'][name]:.3f})" for name in names]
        rows.append(f"| {process} | {solver} | {' | '.join(cells)} |")
    return "\n\n".join([*tables, "\n".join(rows)])


def speed(choices: list[str], rounds: int) -> None:
    """Prints images per second of the quickstart's U-Net for solvers with their steps, in turn."""
    config = presets.preset("quick")
    environment.configure(**configs.environment(config))
    built = {}
    for choice in choices:
        solver, steps = choice.split(":")
        section = replace(config.sample, sampler=solver, steps=int(steps), guidance=0.0)
        built[choice] = cases.build(replace(config, sample=section), "sample")
        built[choice].call()
    seconds: dict[str, list[float]] = {choice: [] for choice in choices}
    # In turn, so that other programs on the machine slow all of them alike.
    for _ in range(rounds):
        for choice, case in built.items():
            started = time.perf_counter()
            case.call()
            seconds[choice].append(time.perf_counter() - started)
    slowest = statistics.median(seconds[choices[0]])
    for choice, case in built.items():
        median = statistics.median(seconds[choice])
        line = {
            "sampler:steps": choice,
            "images_per_second": round(case.images / median, 1),
            "times_as_fast": round(slowest / median, 2),
            "device": environment.device_info()["device_kind"],
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    """Prints shares of the variance, or with --speed images per second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", default=",".join(map(str, EVALUATIONS)))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--speed", nargs="*", metavar="SOLVER:STEPS", help="the first is 1")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.speed is not None:
        return speed(args.speed or ["ddim:550", "multistep:15"], args.rounds)
    found = lines(tuple(map(int, args.evaluations.split(","))))
    if args.markdown:
        print(markdown(list(found)))
    else:
        for line in found:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
