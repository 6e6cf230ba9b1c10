"""Solvers of diffusion processes: mathematics that sees only a denoiser D(x, t) -> x_0.

To add one, write it as a function like those here and give it a row in SOLVERS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax.config import Config, refuse
from selfloop_jax.diffusion import processes

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # (x [N,...], time []) -> x_0 [N,...]


Noise = Callable[[jax.Array], jax.Array]  # solver step [] -> standard normal [N,...]


def guided(
    network_pair: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]], w: float
) -> processes.Network:
    """Classifier-free guidance: (1 + w) conditional - w unconditional.

    arXiv 2207.12598, eq. 6. `network_pair` gives both predictions.
    """

    def network(x: jax.Array, level: jax.Array) -> jax.Array:
        conditional, unconditional = network_pair(x, level)
        return (1 + w) * conditional - w * unconditional

    return network


def ddim(process: processes.Ddpm, denoise: Denoiser, x: jax.Array, steps: int) -> jax.Array:
    """Deterministic DDIM (arXiv 2010.02502, eq. 12 with sigma = 0)."""
    # alphas_bar at the times that are visited, from T to 0: float64[steps+1].
    table = processes.alphas_bar(process.schedule, process.timesteps)[process.times(steps)]

    def step(x, inputs):
        t, signal, next_signal, ratio = inputs
        x_0 = denoise(x, t)
        # x - signal x_0 is the predicted noise at its present scale.
        return next_signal * x_0 + ratio * (x - signal * x_0), None

    # The last ratio is 0 and the last signal 1, as alphas_bar[0] = 1: the result is x_0 itself.
    ratio = np.sqrt((1 - table[1:]) / (1 - table[:-1]))
    return _scan(step, x, process.times(steps)[:-1], np.sqrt(table[:-1]), np.sqrt(table[1:]), ratio)


def ancestral(
    process: processes.Ddpm, denoise: Denoiser, x: jax.Array, steps: int, noise: Noise
) -> jax.Array:
    """Samples the posteriors q(x_s | x_t, x_0) (Ho et al., eq. 7), at `steps` of the times."""
    table = processes.alphas_bar(process.schedule, process.timesteps)[process.times(steps)]
    # Between visited times, now / then takes the place of alpha_t in eq. 7 (arXiv 2102.09672,
    # section 4).
    now = table[:-1]
    then = table[1:]
    on_x_0 = np.sqrt(then) * (1 - now / then) / (1 - now)
    on_x_t = np.sqrt(now / then) * (1 - then) / (1 - now)
    # The square root of eq. 7's posterior variance. It is 0 at the last step, where then = 1.
    deviation = np.sqrt((1 - then) / (1 - now) * (1 - now / then))

    def step(x, inputs):
        i, t, a, b, s = inputs
        return a * denoise(x, t) + b * x + s * noise(i), None

    return _scan(step, x, np.arange(steps), process.times(steps)[:-1], on_x_0, on_x_t, deviation)


def euler(process: processes.Edm, denoise: Denoiser, x: jax.Array, steps: int) -> jax.Array:
    """First-order solver of the probability-flow ODE (Karras et al., eq. 4)."""

    def step(x, sigmas):
        sigma, after = sigmas
        # dx/dsigma = (x - D(x; sigma)) / sigma. The last step, to 0, gives D itself.
        return x + (after - sigma) * (x - denoise(x, sigma)) / sigma, None

    sigmas = process.times(steps)
    return _scan(step, x, sigmas[:-1], sigmas[1:])


def heun(process: processes.Edm, denoise: Denoiser, x: jax.Array, steps: int) -> jax.Array:
    """Second-order solver (Karras et al., algorithm 1)."""

    def step(x, sigmas):
        sigma, after = sigmas
        slope = (x - denoise(x, sigma)) / sigma
        # Euler's step gives the point of the second slope; the step takes the mean of both.
        ahead = x + (after - sigma) * slope
        return x + (after - sigma) * 0.5 * (slope + (ahead - denoise(ahead, after)) / after), None

    sigmas = process.times(steps)
    # All steps but the last: the second slope would divide by sigma = 0.
    x = _scan(step, x, sigmas[:-2], sigmas[1:-1])
    return denoise(x, jnp.asarray(sigmas[-2]))  # Euler's step to sigma = 0 ends on D itself.


ORDER = 3  # values of D that a step of `multistep` puts a polynomial through


def multistep(process: processes.Process, denoise: Denoiser, x: jax.Array, steps: int) -> jax.Array:
    """Third-order multistep predictor and corrector in log(signal / noise); one evaluation a step.

    With lambda = log(signal / noise) the exact step integrates e^lambda D (DPM-Solver++, arXiv
    2211.01095, eq. 8). A step predicts with the polynomial through the last three values of D,
    fewer at the start, evaluates D there, and repeats itself with the polynomial that has this new
    value in the place of the oldest (the corrector of UniPC, arXiv 2302.04867). The last step ends
    on D itself.
    """
    times, signal, noise = process.log_snr_times(steps)
    lam = np.log(signal / noise)
    ratio = noise[1:] / noise[:-1]
    predict = signal[1:, None] * _weights(lam, newest=0)
    correct = signal[1:, None] * _weights(lam, newest=1)
    # A step is corrected at the beginning of the next one, so the first corrects nothing.
    back = np.append(1.0, ratio)[:-1]
    correct = np.concatenate([np.zeros((1, ORDER)), correct])[:-1]

    def step(carry, inputs):
        predicted, last, before, earlier = carry
        t, back, correct, ratio, predict = inputs
        x_0 = denoise(predicted, t)
        x = back * last + correct[0] * x_0 + correct[1] * before + correct[2] * earlier
        ahead = ratio * x + predict[0] * x_0 + predict[1] * before + predict[2] * earlier
        return (ahead, x, x_0, before), None

    start = (x, x, jnp.zeros_like(x), jnp.zeros_like(x))
    x, *_ = _scan(step, start, times[:-1], back, correct, ratio, predict)
    return denoise(x, jnp.asarray(times[-1]))


def _weights(lam: np.ndarray, newest: int) -> np.ndarray:
    """float64[n-1,3]: what each step of `multistep` gives the values of D, the newest first.

    lam: log(signal / noise), float64[n], ascending. newest: 0 where the newest value is that at the
    start of the step, 1 where it is that at its end. The weight of a value is the integral of
    e^(l - end) times its Lagrange polynomial over the step.
    """
    node, node_weight = np.polynomial.legendre.leggauss(24)  # exact but for rounding
    weights = np.zeros((len(lam) - 1, ORDER))
    for i in range(len(lam) - 1):
        length = lam[i + 1] - lam[i]
        at = lam[i] + length * (node + 1) / 2
        factor = node_weight * length / 2 * np.exp(at - lam[i + 1])
        # The first steps have fewer values.
        end = i + 1 + newest
        known = lam[max(0, end - ORDER) : end][::-1]
        for j, own in enumerate(known):
            others = np.delete(known, j)
            lagrange = np.prod((at[:, None] - others) / (own - others), axis=1)
            weights[i, j] = factor @ lagrange
    return weights


@dataclass(frozen=True)
class Solver:
    """A row of SOLVERS: a function, the process that it solves, and what it costs.

    process: its name, '' for every one with `log_snr_times`. evaluations: of the denoiser per
    image, by the number of steps. stochastic: it calls `noise`, and forgets its initial noise.
    """

    solve: Callable[..., jax.Array]
    process: str
    evaluations: Callable[[int], int] = lambda steps: steps
    stochastic: bool = False

    def __call__(
        self, process: Any, denoise: Denoiser, x: jax.Array, steps: int, noise: Noise
    ) -> jax.Array:
        """x_0 [N,...] from the start noise x; only a stochastic solver calls `noise`."""
        if self.stochastic:
            return self.solve(process, denoise, x, steps, noise)
        return self.solve(process, denoise, x, steps)


SOLVERS = {
    "ddim": Solver(ddim, "ddpm"),
    "ancestral": Solver(ancestral, "ddpm", stochastic=True),
    "euler": Solver(euler, "edm"),
    # Two evaluations a step, but one in the last.
    "heun": Solver(heun, "edm", evaluations=lambda steps: 2 * steps - 1),
    "multistep": Solver(multistep, ""),
}


def check(config: Config) -> None:
    """Raises UsageError for a sampler of another process, or a temperature that it forgets."""
    process = config.diffusion.process
    # A process of a user's own need not have what `multistep` asks for.
    any_of = ("",) if hasattr(processes.PROCESSES[process], "log_snr_times") else ()
    names = [name for name, solver in SOLVERS.items() if solver.process in (process, *any_of)]
    if config.sample.sampler not in names:
        must = f"one of {' | '.join(names)} for diffusion.process = {process}"
        refuse("sample.sampler", config.sample.sampler, must)
    # The noise of its steps replaces the initial noise, which the temperature scales.
    if SOLVERS[config.sample.sampler].stochastic and config.sample.temperature != 1:
        must = f"1 where sample.sampler = {config.sample.sampler}, which forgets its initial noise"
        refuse("sample.temperature", config.sample.temperature, must)


def _scan(step: Callable, carry: Any, *inputs: np.ndarray) -> Any:
    """The last carry of `step` over the rows of `inputs`, floats rounded once to its dtype."""
    dtype = jax.tree.leaves(carry)[0].dtype
    rows = [jnp.asarray(v, dtype if v.dtype.kind == "f" else jnp.int32) for v in inputs]
    # A scan compiles the step once, however many there are.
    return jax.lax.scan(step, carry, rows)[0]
