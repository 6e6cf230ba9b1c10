"""Samplers against the closed form of Gaussian data, training targets against their definitions, and drawing.

For data N(MEAN, COV) the ideal denoiser E[x_0 | x_t] is affine, so a sampler is an affine map of its initial
x and of the noise it draws. The map is read off by probing it with unit impulses; the reference is a float64
recursion of mean and covariance that shares no formula with the module.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfloop_jax import diffusion, generate, parallel, rng
from selfloop_jax.data.images import Images
from selfloop_jax.models.unet import UNet

SHAPE = (2, 2, 1)
DIM = 4
MEAN = np.array([0.5, -0.3, 0.1, 0.8])
ROOT = np.array([[0.7, 0, 0, 0], [0.3, 0.5, 0, 0], [-0.2, 0.4, 0.6, 0], [0.1, -0.3, 0.2, 0.4]])
COV = ROOT @ ROOT.T + 0.05 * np.eye(DIM)
T = 1000
EDM = diffusion.Edm(sigma_data=0.5, p_mean=-1.2, p_std=1.2, sigma_min=0.002, sigma_max=80.0, rho=7.0)
CASES = [
    *(("ddim", schedule) for schedule in ("linear", "cosine")),
    *(("ancestral", schedule) for schedule in ("linear", "cosine")),
    ("euler", None),
    ("heun", None),
]


def process_of(schedule):
    return diffusion.Ddpm(schedule, T, "v") if schedule else EDM


# --- the reference: float64, its own schedules, Bayes' rule for the posterior ---


def reference_alphas_bar(schedule, timesteps):
    """Ho et al.'s betas multiplied one by one; Nichol and Dhariwal's eq. 17 in closed form, eq. 17's clip last."""
    if schedule == "linear":
        first, last = 0.1 / timesteps, 20 / timesteps
        table = [1.0]
        for t in range(timesteps):
            table.append(table[-1] * (1 - (first + (last - first) * t / (timesteps - 1))))
        return np.array(table)
    angle = [(t / timesteps + 0.008) / 1.008 * np.pi / 2 for t in range(timesteps + 1)]
    table = (np.cos(angle) / np.cos(angle[0])) ** 2
    table[-1] = table[-2] * 0.001
    return table


def reference_sigmas(process, steps):
    """Karras et al., eq. 5, term by term."""
    high, low = process.sigma_max ** (1 / process.rho), process.sigma_min ** (1 / process.rho)
    return [(high + i / (steps - 1) * (low - high)) ** process.rho for i in range(steps)] + [0.0]


def gaussian_denoiser(signal, variance):
    """(gain, offset) of E[x_0 | x] for x = signal x_0 + sqrt(variance) noise."""
    gain = signal * COV @ np.linalg.inv(signal**2 * COV + variance * np.eye(DIM))
    return gain, MEAN - gain @ (signal * MEAN)


def after_map(mean, cov, gain, offset, deviation=0.0):
    return gain @ mean + offset, gain @ cov @ gain.T + deviation**2 * np.eye(DIM)


def reference_ddpm(sampler, schedule, steps):
    """Mean and covariance of the output, started from the exact marginal at T."""
    table = reference_alphas_bar(schedule, T)
    mean, cov = np.sqrt(table[T]) * MEAN, table[T] * COV + (1 - table[T]) * np.eye(DIM)
    for i in range(steps):
        now, then = table[T - i * T // steps], table[T - (i + 1) * T // steps]
        gain, offset = gaussian_denoiser(np.sqrt(now), 1 - now)
        if then == 1:
            step = gain, offset
        elif sampler == "ddim":
            eps_gain = (np.eye(DIM) - np.sqrt(now) * gain) / np.sqrt(1 - now)
            eps_offset = -np.sqrt(now) * offset / np.sqrt(1 - now)
            step = (
                np.sqrt(then) * gain + np.sqrt(1 - then) * eps_gain,
                np.sqrt(then) * offset + np.sqrt(1 - then) * eps_offset,
            )
        else:  # q(x_s | x_t, x_0): product of the Gaussians q(x_t | x_s) and q(x_s | x_0)
            alpha, beta = now / then, 1 - now / then
            variance = 1 / (alpha / beta + 1 / (1 - then))
            on_t, on_0 = variance * np.sqrt(alpha) / beta, variance * np.sqrt(then) / (1 - then)
            step = on_0 * gain + on_t * np.eye(DIM), on_0 * offset, np.sqrt(variance)
        mean, cov = after_map(mean, cov, *step)
    return mean, cov


def reference_edm(sampler, steps):
    """The same for dx/dsigma = (x - D(x; sigma)) / sigma, by Euler or by the trapezoid rule with Euler last."""
    sigmas = reference_sigmas(EDM, steps)
    mean, cov = MEAN, COV + EDM.sigma_max**2 * np.eye(DIM)

    def slope(sigma):
        gain, offset = gaussian_denoiser(1.0, sigma**2)
        return (np.eye(DIM) - gain) / sigma, -offset / sigma

    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        matrix, vector = slope(sigma)
        ahead = np.eye(DIM) + (after - sigma) * matrix, (after - sigma) * vector
        if sampler == "heun" and after:
            matrix_2, vector_2 = slope(after)
            matrix, vector = (matrix + matrix_2 @ ahead[0]) / 2, (vector + matrix_2 @ ahead[1] + vector_2) / 2
            ahead = np.eye(DIM) + (after - sigma) * matrix, (after - sigma) * vector
        mean, cov = after_map(mean, cov, *ahead)
    return mean, cov


# --- the module, probed ---


def affine(gain, offset, x):
    flat = jnp.einsum("ij,nj->ni", gain, x.reshape(len(x), DIM), precision="highest") + offset[None]
    return flat.reshape(x.shape)


def ideal_denoiser(process):
    """E[x_0 | x_t] as the samplers call it."""
    if isinstance(process, diffusion.Ddpm):
        table = reference_alphas_bar(process.schedule, process.timesteps)
        gains, offsets = zip(*(gaussian_denoiser(np.sqrt(a), 1 - a) for a in table), strict=True)
        gains, offsets = jnp.asarray(np.stack(gains), jnp.float32), jnp.asarray(np.stack(offsets), jnp.float32)
        return lambda x, t: affine(gains[t], offsets[t], x)
    values, vectors = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(COV))
    mean = jnp.asarray(MEAN, jnp.float32)

    def denoise(x, sigma):
        gain = (vectors * (values / (values + sigma**2))[None]) @ vectors.T
        return affine(gain, mean - gain @ mean, x)

    return denoise


def probed(sampler, process, steps, denoise):
    """Start scale, (A [DIM,DIM], B [steps,DIM,DIM], b [DIM]) of x -> A x / scale + sum of B_i noise_i + b."""
    draws = steps if sampler == "ancestral" else 0
    scale = float(process.prior_scale)
    impulses = np.zeros((1 + DIM + draws * DIM, DIM), np.float32)
    impulses[1 : 1 + DIM] = scale * np.eye(DIM)
    noises = np.zeros((max(draws, 1), len(impulses), DIM), np.float32)
    for i in range(draws):
        noises[i, 1 + DIM * (i + 1) : 1 + DIM * (i + 2)] = np.eye(DIM)
    noises = jnp.asarray(noises.reshape(-1, len(impulses), *SHAPE))

    def noise(step):
        assert draws, "a deterministic sampler drew noise"
        return noises[step]

    run = jax.jit(partial(diffusion.SAMPLERS[sampler], process, denoise, steps=steps, noise=noise))
    out = np.asarray(run(jnp.asarray(impulses.reshape(-1, *SHAPE))), np.float64).reshape(-1, DIM)
    maps = (out[1:] - out[0]).reshape(1 + draws, DIM, DIM).swapaxes(1, 2)
    return scale, maps[0], maps[1:], out[0]


def output_moments(sampler, schedule, steps):
    """Mean and covariance of the sampler's output, started from the exact marginal at its initial time."""
    process = process_of(schedule)
    scale, start, noises, offset = probed(sampler, process, steps, ideal_denoiser(process))
    if schedule:
        a = reference_alphas_bar(schedule, T)[T]
        mean, cov = np.sqrt(a) * MEAN, a * COV + (1 - a) * np.eye(DIM)
    else:
        mean, cov = MEAN, COV + EDM.sigma_max**2 * np.eye(DIM)
    out = start @ (cov / scale**2) @ start.T + sum(b @ b.T for b in noises)
    return start @ mean / scale + offset, out


@pytest.mark.parametrize("steps", [5, 20, 100])
@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_output_moments_equal_float64_recursion(sampler, schedule, steps):
    mean, cov = output_moments(sampler, schedule, steps)
    reference = reference_ddpm(sampler, schedule, steps) if schedule else reference_edm(sampler, steps)
    print("ERR", sampler, schedule, steps, abs(mean - reference[0]).max(), abs(cov - reference[1]).max())
    np.testing.assert_allclose(mean, reference[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cov, reference[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(mean, MEAN, rtol=0, atol=1e-5)


