"""Tests samplers against the closed form for Gaussian data, and training targets.

For data N(MEAN, COV) the ideal denoiser E[x_0 | x_t] is affine, so a sampler is an affine map of
its initial x and of the noise it adds. Unit impulses at its inputs give the map. The reference is a
float64 recursion of mean and covariance that shares no formula with the module.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from selfloop_jax.config import DiffusionConfig, EdmConfig, FlipConfig, SampleConfig
from selfloop_jax.data.images import Images
from selfloop_jax.diffusion import processes, solvers
from selfloop_jax.models.unet import UNet
from selfloop_jax.runtime.keys import key
from selfloop_jax.sampling import requests
from selfloop_jax.sampling.sampler import make_sampler
from selfloop_jax.training import generator

SHAPE = (2, 2, 1)


DIM = 4


MEAN = np.array([0.5, -0.3, 0.1, 0.8])


ROOT = np.array([[0.7, 0, 0, 0], [0.3, 0.5, 0, 0], [-0.2, 0.4, 0.6, 0], [0.1, -0.3, 0.2, 0.4]])


COV = ROOT @ ROOT.T + 0.05 * np.eye(DIM)


T = 1000


LINEAR, COSINE = processes.Ddpm("linear", T, "eps"), processes.Ddpm("cosine", T, "v")


EDM = processes.Edm(
    sigma_data=0.5, p_mean=-1.2, p_std=1.2, sigma_min=0.002, sigma_max=80.0, rho=7.0
)


# Heun's last slope divides float32 rounding by sigma_min: 4e-5 at 5 steps for 0.002, 4e-6 for this
# one.
SHORT_EDM = replace(EDM, sigma_min=0.02)


DDPM_CASES = [
    (sampler, process) for sampler in ("ddim", "ancestral") for process in (LINEAR, COSINE)
]


def case_name(value):
    return value.schedule if isinstance(value, processes.Ddpm) else None


def reference_alphas_bar(schedule, timesteps):
    """Returns alphas_bar: Ho et al.'s product of betas, or Nichol and Dhariwal's eq. 17."""
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
    """Returns the noise levels of Karras et al., eq. 5, term by term."""
    high, low = process.sigma_max ** (1 / process.rho), process.sigma_min ** (1 / process.rho)
    return [(high + i / (steps - 1) * (low - high)) ** process.rho for i in range(steps)] + [0.0]


def gaussian_denoiser(signal, variance):
    """Returns (gain, offset) of E[x_0 | x] for x = signal x_0 + sqrt(variance) noise."""
    gain = signal * COV @ np.linalg.inv(signal**2 * COV + variance * np.eye(DIM))
    return gain, MEAN - gain @ (signal * MEAN)


def after_map(mean, cov, gain, offset, deviation=0.0):
    return gain @ mean + offset, gain @ cov @ gain.T + deviation**2 * np.eye(DIM)


def start_moments(process):
    """Returns the moments of the exact marginal at the time where sampling starts."""
    if isinstance(process, processes.Edm):
        return MEAN, COV + process.sigma_max**2 * np.eye(DIM)
    a = reference_alphas_bar(process.schedule, T)[T]
    return np.sqrt(a) * MEAN, a * COV + (1 - a) * np.eye(DIM)


def reference_ddpm(sampler, process, steps):
    """Returns mean and covariance of the output of DDIM or ancestral sampling."""
    table = reference_alphas_bar(process.schedule, T)
    mean, cov = start_moments(process)
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


def reference_edm(sampler, process, steps):
    """Returns mean and covariance of the output of Euler or Heun, whose last step is Euler."""
    sigmas = reference_sigmas(process, steps)
    mean, cov = start_moments(process)

    def slope(sigma):
        gain, offset = gaussian_denoiser(1.0, sigma**2)
        return (np.eye(DIM) - gain) / sigma, -offset / sigma

    for sigma, after in pairwise(sigmas):
        matrix, vector = slope(sigma)
        ahead = np.eye(DIM) + (after - sigma) * matrix, (after - sigma) * vector
        if sampler == "heun" and after:
            matrix_2, vector_2 = slope(after)
            matrix, vector = (
                (matrix + matrix_2 @ ahead[0]) / 2,
                (vector + matrix_2 @ ahead[1] + vector_2) / 2,
            )
            ahead = np.eye(DIM) + (after - sigma) * matrix, (after - sigma) * vector
        mean, cov = after_map(mean, cov, *ahead)
    return mean, cov


def reference_multistep(process, steps):
    """Returns mean and covariance of the output of `multistep`: quadrature of polynomials of D."""
    _, signal, noise = process.log_snr_times(steps)
    lam = np.log(signal / noise)
    seen = []  # D at each visited point, an affine map of the start: [DIM,DIM+1]

    def stepped(x, i, known):
        """Returns the map at the end of step i from x, with D as a polynomial through `known`."""
        ahead = noise[i + 1] / noise[i] * x
        for j in known:
            # The polynomial that is 1 at lam[j] and 0 at the others.
            values = [float(k == j) for k in known]
            polynomial = np.polynomial.Polynomial.fit(lam[list(known)], values, len(values) - 1)
            weight, _ = integrate.quad(
                lambda x, p=polynomial, end=lam[i + 1]: np.exp(x - end) * p(x), lam[i], lam[i + 1]
            )
            ahead = ahead + signal[i + 1] * weight * seen[j]
        return ahead

    x = np.eye(DIM, DIM + 1)
    predicted = x
    for i in range(len(lam)):
        gain, offset = gaussian_denoiser(signal[i], noise[i] ** 2)
        seen.append(gain @ predicted + np.eye(DIM + 1)[DIM] * offset[:, None])
        if i > 0:
            x = stepped(x, i - 1, range(max(0, i - 2), i + 1))
        if i + 1 < len(lam):
            predicted = stepped(x, i, range(max(0, i - 2), i + 1))
    mean, cov = start_moments(process)
    gain, offset = seen[-1][:, :DIM], seen[-1][:, DIM]
    return gain @ mean + offset, gain @ cov @ gain.T


def affine(gain, offset, x):
    flat = jnp.einsum("ij,nj->ni", gain, x.reshape(len(x), DIM), precision="highest") + offset[None]
    return flat.reshape(x.shape)


def ideal_denoiser(process):
    """Returns E[x_0 | x_t] as a function that the samplers can call."""
    if isinstance(process, processes.Ddpm):
        table = reference_alphas_bar(process.schedule, process.timesteps)
        gains, offsets = zip(*(gaussian_denoiser(np.sqrt(a), 1 - a) for a in table), strict=True)
        gains, offsets = (
            jnp.asarray(np.stack(gains), jnp.float32),
            jnp.asarray(np.stack(offsets), jnp.float32),
        )
        return lambda x, t: affine(gains[t], offsets[t], x)
    values, vectors = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(COV))
    mean = jnp.asarray(MEAN, jnp.float32)

    def denoise(x, sigma):
        gain = (vectors * (values / (values + sigma**2))[None]) @ vectors.T
        return affine(gain, mean - gain @ mean, x)

    return denoise


def probed(sampler, process, steps, denoise):
    """Returns scale and (A [DIM,DIM], B [steps,DIM,DIM], b [DIM]) of a sampler's affine map.

    The map is x -> A x / scale + sum of B_i noise_i + b.
    """
    draws = steps if sampler == "ancestral" else 0
    scale = float(process.prior_scale)
    impulses = np.zeros((1 + DIM + draws * DIM, DIM), np.float32)
    impulses[1 : 1 + DIM] = scale * np.eye(DIM)
    noises = np.zeros((max(draws, 1), len(impulses), DIM), np.float32)
    for i in range(draws):
        noises[i, 1 + DIM * (i + 1) : 1 + DIM * (i + 2)] = np.eye(DIM)
    noises = jnp.asarray(noises.reshape(-1, len(impulses), *SHAPE))

    def noise(step):
        assert draws, "a deterministic sampler requested noise"
        return noises[step]

    run = jax.jit(partial(solvers.SOLVERS[sampler], process, denoise, steps=steps, noise=noise))
    out = np.asarray(run(jnp.asarray(impulses.reshape(-1, *SHAPE))), np.float64).reshape(-1, DIM)
    maps = (out[1:] - out[0]).reshape(1 + draws, DIM, DIM).swapaxes(1, 2)
    return scale, maps[0], maps[1:], out[0]


def output_moments(sampler, process, steps):
    """Returns the moments of the sampler's output, started from the exact marginal."""
    scale, start, noises, offset = probed(sampler, process, steps, ideal_denoiser(process))
    mean, cov = start_moments(process)
    return start @ mean / scale + offset, start @ (cov / scale**2) @ start.T + sum(
        b @ b.T for b in noises
    )


@pytest.mark.parametrize("steps", [5, 20, 100])
@pytest.mark.parametrize(
    ("sampler", "process"),
    [
        *DDPM_CASES,
        *(("euler", SHORT_EDM), ("heun", SHORT_EDM)),
        *(("multistep", process) for process in (LINEAR, COSINE, EDM)),
    ],
    ids=case_name,
)
def test_output_moments_equal_a_float64_recursion(sampler, process, steps):
    mean, cov = output_moments(sampler, process, steps)
    reference = reference_ddpm if isinstance(process, processes.Ddpm) else reference_edm
    if sampler == "multistep":
        expected_mean, expected_cov = reference_multistep(process, steps)
    else:
        expected_mean, expected_cov = reference(sampler, process, steps)
    np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(cov, expected_cov, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mean, MEAN, rtol=0, atol=1e-5)  # exact at any number of steps


@pytest.mark.parametrize(
    ("sampler", "process", "steps", "order"),
    [*((*case, 250, 1) for case in DDPM_CASES), ("euler", EDM, 80, 1), ("heun", EDM, 80, 2)],
    ids=case_name,
)
def test_error_of_the_covariance_falls_at_the_order_of_the_sampler(sampler, process, steps, order):
    errors = [
        np.linalg.norm(output_moments(sampler, process, n)[1] - COV) for n in (steps, 2 * steps)
    ]
    assert errors[0] > 1e-3  # far above rounding
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_the_multistep_solver_is_of_third_order(monkeypatch):
    """On a grid without its two bounds, which leave an error that no number of steps mends."""
    monkeypatch.setattr(processes, "NOISIEST", 1000.0)
    monkeypatch.setattr(processes, "CLEANEST", 1e-3)
    errors = [np.linalg.norm(output_moments("multistep", EDM, n)[1] - COV) for n in (20, 40)]
    assert errors[1] > 1e-4  # far above rounding
    assert np.log2(errors[0] / errors[1]) > 2.9


@pytest.mark.parametrize("process", [LINEAR, COSINE, EDM], ids=case_name)
def test_fifteen_evaluations_keep_the_variance(process, monkeypatch):
    """Of what an ideal denoiser makes, 98.9 % to 101.2 %, from a grey level to the widest axes."""
    for deviations in ([0.05, 0.1, 0.25, 0.5], [1.0, 2.0, 3.0, 5.0]):
        monkeypatch.setattr(f"{__name__}.COV", np.diag(np.square(deviations)))
        monkeypatch.setattr(f"{__name__}.MEAN", np.zeros(DIM))
        _, cov = output_moments("multistep", process, 15)
        np.testing.assert_allclose(np.diag(cov), np.square(deviations), rtol=0.012)


def test_times_that_a_discrete_process_lacks_are_left_out():
    short = processes.Ddpm("cosine", 10, "v")
    times, signal, noise = short.log_snr_times(30)
    assert len(times) <= 10
    assert (np.diff(times) < 0).all()
    np.testing.assert_allclose(signal**2 + noise**2, 1)


@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("sampler", solvers.SOLVERS)
def test_evaluations_counts_calls_of_the_denoiser(sampler, steps):
    calls = []

    def denoise(x, time):
        calls.append(float(time))
        return 0.5 * x

    process = LINEAR if sampler in ("ddim", "ancestral") else EDM
    with jax.disable_jit():
        solvers.SOLVERS[sampler](process, denoise, jnp.ones((1, *SHAPE)), steps, lambda i: 0.0)
    assert len(calls) == solvers.SOLVERS[sampler].evaluations(steps)
    assert calls == sorted(calls, reverse=True)
    assert calls[0] == process.times(steps)[0]
    assert min(calls) > 0


@pytest.mark.parametrize("timesteps", [100, 1000, 4000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_alphas_bar_equals_its_definition(schedule, timesteps):
    table = processes.alphas_bar(schedule, timesteps)
    assert table.dtype == np.float64
    assert len(table) == timesteps + 1
    np.testing.assert_allclose(table, reference_alphas_bar(schedule, timesteps), rtol=1e-9)


@pytest.mark.parametrize("timesteps", [1, 2, 10])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_alphas_bar_falls_from_one_and_stays_positive_for_few_timesteps(schedule, timesteps):
    table = processes.alphas_bar(schedule, timesteps)
    assert table[0] == 1
    assert np.all(np.diff(table) < 0)
    assert table[-1] > 0


@pytest.mark.parametrize("steps", [1, 3, 7, 999, 1000])
def test_ddpm_times_fall_evenly_from_the_last_to_zero(steps):
    times = LINEAR.times(steps)
    assert times.dtype == np.int32
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (T, 0)
    assert np.all(np.diff(times) < 0)
    np.testing.assert_allclose(np.diff(times), -T / steps, atol=1)


@pytest.mark.parametrize("process", [EDM, replace(EDM, sigma_min=0.1, sigma_max=7.0, rho=3.0)])
@pytest.mark.parametrize("steps", [2, 18])
def test_edm_times_equal_equation_5(process, steps):
    times = process.times(steps)
    assert times.dtype == np.float32
    np.testing.assert_allclose(times, reference_sigmas(process, steps), rtol=1e-6)


def test_one_step_of_either_edm_solver_is_the_denoiser_at_sigma_max():
    x = 80 * jnp.linspace(-1, 1, DIM).reshape(1, *SHAPE)
    for sampler in (solvers.euler, solvers.heun):
        out = sampler(EDM, ideal_denoiser(EDM), x, 1)
        np.testing.assert_allclose(out, ideal_denoiser(EDM)(x, jnp.float32(80)), atol=1e-5)


def examples(process, count=4000, std=1.0, mean=0.0):
    """Returns inputs, levels and targets of `count` one-pixel images, and the images."""
    x_0 = mean + std * jax.random.normal(jax.random.key(4), (count, 1, 1, 1))
    keys = jax.random.split(jax.random.key(3), count)
    return *jax.jit(jax.vmap(process.training_target))(keys, x_0), x_0


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0, 0, 0))
def denoised(process, x, time, output):
    """Returns D(x, time) for a network with this output, and the network's input and level."""
    asked = []

    def network(x, level):
        asked.append((x[0], level[0]))
        return output[None]

    return process.denoise(network, x[None], time)[0], *asked[0]


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_denoise_undoes_example(schedule, prediction):
    process = processes.Ddpm(schedule, 500, prediction)
    x, level, target, x_0 = examples(process)
    t = np.rint(np.asarray(level) / 2).astype(np.int32)
    recovered, asked_x, asked_level = denoised(process, x, jnp.asarray(t), target)
    np.testing.assert_array_equal(asked_x, x)
    np.testing.assert_array_equal(asked_level, level)
    # Solving for x_0 from eps divides float32 rounding by the signal's share; v never divides.
    signal = np.sqrt(processes.alphas_bar(schedule, 500)[t]) if prediction == "eps" else 1.0
    assert np.max(abs(np.asarray(recovered - x_0)).ravel() * signal) < 2e-6


def test_edm_denoise_undoes_example():
    x, level, target, x_0 = examples(EDM, std=0.5)
    sigma = jnp.exp(level / 250)
    noisy = x * jnp.sqrt(sigma**2 + 0.5**2)[:, None, None, None]
    recovered, asked_x, asked_level = denoised(EDM, noisy, sigma, target)
    np.testing.assert_allclose(asked_x, x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(asked_level, level, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(recovered, x_0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ddpm_input_and_target_have_unit_variance_at_every_noise_level(prediction):
    x, level, target, _ = examples(replace(COSINE, prediction=prediction), count=40_000)
    for low in range(0, 1000, 200):
        near = (level > low) & (
            level <= low + 200
        )  # about 8000: standard error of a variance 0.016
        assert np.var(x[near]) == pytest.approx(1, abs=0.08)
        assert np.var(target[near]) == pytest.approx(1, abs=0.08)


def test_ddpm_trains_on_every_time_equally_often():
    _, level, _, _ = examples(processes.Ddpm("linear", 4, "eps"))
    values, counts = np.unique(level, return_counts=True)
    assert values.tolist() == [250, 500, 750, 1000]
    np.testing.assert_allclose(counts, 1000, atol=140)  # five standard deviations


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (-0.9, 0.3)])
def test_edm_input_and_target_are_of_size_one(mean, std, sigma):
    """Also of pixels with a mean, where sigma_data is their root mean square."""
    section = DiffusionConfig(edm=EdmConfig(p_mean=float(np.log(sigma)), p_std=1e-6))
    process = processes.build(processes.for_data(section, float(np.hypot(mean, std))))
    x, level, target, _ = examples(process, count=40_000, std=std, mean=mean)
    assert np.mean(x**2) == pytest.approx(1, abs=0.04)  # standard error at most 0.007
    assert np.mean(target**2) == pytest.approx(1, abs=0.04)
    np.testing.assert_allclose(level, 250 * np.log(sigma), rtol=1e-4, atol=1e-2)


def test_sigma_data_is_that_of_the_config_or_of_the_data():
    named = DiffusionConfig(edm=EdmConfig(sigma_data=0.7))
    assert processes.build(processes.for_data(named, 0.95)).sigma_data == 0.7
    left_open = DiffusionConfig()
    assert processes.build(processes.for_data(left_open, 0.95)).sigma_data == 0.95
    with pytest.raises(ValueError, match=r"sigma_data = 0\.0"):
        processes.build(left_open)


def test_edm_noise_levels_are_log_normal():
    _, level, _, _ = examples(EDM, count=40_000)
    assert np.mean(level / 250) == pytest.approx(EDM.p_mean, abs=0.03)
    assert np.std(level / 250) == pytest.approx(EDM.p_std, abs=0.03)


def test_edm_plain_mse_of_the_target_is_the_weighted_loss_of_the_paper():
    x, level, target, x_0 = examples(EDM, std=0.5)
    output = jax.random.normal(jax.random.key(5), x.shape)
    sigma = jnp.exp(level / 250)
    total = sigma**2 + 0.5**2
    noisy = x * jnp.sqrt(total)[:, None, None, None]
    estimate, _, _ = denoised(EDM, noisy, sigma, output)
    weighted = (total / (sigma * 0.5) ** 2) * ((estimate - x_0) ** 2)[
        :, 0, 0, 0
    ]  # lambda(sigma), table 1
    np.testing.assert_allclose(weighted, ((output - target) ** 2)[:, 0, 0, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("w", [-1.0, 0.0, 0.5, 3.0])
def test_guided_extrapolates_from_unconditional_to_conditional(w):
    pair = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)
    asked = []

    def network_pair(x, level):
        asked.append((x, level))
        return pair[0], pair[1]

    np.testing.assert_allclose(
        solvers.guided(network_pair, w)("x", "level"), pair[1] + (1 + w) * (pair[0] - pair[1])
    )
    assert asked == [("x", "level")]


def loss_batch(count):
    i = np.arange(count)
    return {
        "pixels": (i[:, None, None, None] * 37 + np.arange(12).reshape(1, 2, 2, 3) * 20).astype(
            np.uint8
        ),
        "label": (i % 3).astype(np.int32),
        "group": (i % 4 - 1).clip(-1, 1).astype(np.int32),  # -1, 0, 1, 1
        "position": i.astype(np.int32),
    }


@partial(jax.jit, static_argnums=1)
def network_inputs(batch, label_dropout):
    """What the loss gives to the network."""
    seen = {}

    def apply(variables, x, level, label, group, keys):
        seen.update(x=x, level=level, label=label, group=group, keys=jax.random.key_data(keys))
        return jnp.zeros_like(x)

    model = SimpleNamespace(apply=apply, num_classes=3, num_groups=2)
    section = SimpleNamespace(label_dropout=label_dropout, augment=FlipConfig())
    bound = partial(generator.loss, model=model, process=EDM, section=section)
    bound({}, {}, batch, jax.random.key(1))
    return seen


def test_label_and_group_are_dropped_together_to_the_null_condition():
    batch = loss_batch(4000)
    seen = network_inputs(batch, 0.25)
    dropped = seen["label"] == 3
    assert dropped.mean() == pytest.approx(0.25, abs=0.035)  # five standard deviations
    np.testing.assert_array_equal(seen["label"][~dropped], batch["label"][~dropped])
    expected = np.where(dropped | (batch["group"] < 0), 2, batch["group"])
    np.testing.assert_array_equal(seen["group"], expected)


@pytest.mark.parametrize(("label_dropout", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_label_dropout_can_be_none_or_all(label_dropout, share):
    assert (network_inputs(loss_batch(8), label_dropout)["label"] == 3).mean() == share


def test_noise_of_an_example_depends_on_its_position_alone():
    whole = network_inputs(loss_batch(8), 0.5)
    some = {name: array[[5, 2]] for name, array in loss_batch(8).items()}
    part = network_inputs(some, 0.5)
    for name, array in part.items():
        expected = np.asarray(whole[name])[[5, 2]]
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6, err_msg=name)
    some["position"] = some["position"] + 10
    assert np.all(network_inputs(some, 0.5)["level"] != part["level"])


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.25)])
def test_loss_is_the_mean_squared_error_of_the_noise(share, expected):
    process = replace(COSINE, prediction="eps")
    table = jnp.asarray(reference_alphas_bar("cosine", T), jnp.float32)

    def apply(variables, x, level, *condition):
        a = table[level.astype(jnp.int32)][:, None, None, None]
        return (
            share * (x - jnp.sqrt(a) * -0.6) / jnp.sqrt(1 - a)
        )  # share 1: the truth for pixels of -0.6

    model = SimpleNamespace(apply=apply, num_classes=3, num_groups=2)
    batch = {**loss_batch(400), "pixels": np.full((400, 2, 2, 3), 51, np.uint8)}
    section = SimpleNamespace(label_dropout=0.1, augment=FlipConfig())
    value, _ = jax.jit(partial(generator.loss, model=model, process=process, section=section))(
        {}, {}, batch, jax.random.key(1)
    )
    assert value == pytest.approx(
        expected, rel=0.1, abs=1e-5
    )  # standard error of a mean square: 0.02


def images(label, group):
    count = len(label)
    return Images(
        pixels=np.zeros((count, 8, 8, 3), np.uint8),
        label=np.asarray(label, np.int32),
        group=np.asarray(group, np.int32),
        origin=np.full(count, -1, np.int32),
        id=np.arange(count, dtype=np.uint32),
    )


POOL = images([0, 0, 0, 1, 1, 2, 2, 2, 2, 2], [0, 1, 1, 1, 0, -1, 0, 1, 1, 1])


REAL = images([0, 1, 2, 0, 1, 2], [1, 0, 1, 0, 0, 1])


CROSSED = np.ones((3, 2), bool)


def conditions(condition, count, seed=0, members=CROSSED):
    section = SampleConfig(request=condition, count=count)
    return requests.requested_labels(section, (seed, "sample"), POOL, REAL, members)


def subgroups(label, group):
    return sorted(zip(label.tolist(), group.tolist(), strict=True))


def test_uniform_requests_fill_every_subgroup_equally():
    label, group = conditions("uniform", 24)
    assert subgroups(label, group) == sorted([(c, g) for c in range(3) for g in range(2)] * 4)
    uneven = np.bincount(conditions("uniform", 100)[0])
    assert uneven.max() - uneven.min() <= 1


def test_uniform_requests_stay_among_the_groups_of_a_class():
    members = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]], bool)
    label, group = conditions("uniform", 24, members=members)
    assert members[label, group].all()
    assert np.bincount(label).tolist() == [8, 8, 8]
    assert np.bincount(group).tolist() == [4, 4, 8, 4, 4]


@pytest.mark.parametrize(("condition", "reference"), [("pool", POOL), ("real", REAL)])
def test_requests_like_a_set_have_exactly_its_composition(condition, reference):
    once = subgroups(reference.label, reference.group)
    label, group = conditions(condition, 3 * len(reference))
    assert subgroups(label, group) == sorted(3 * once)
    for start in range(0, len(label), len(reference)):
        part = slice(start, start + len(reference))
        assert subgroups(label[part], group[part]) == once


def test_requests_for_a_part_of_a_set_have_its_composition_to_an_image():
    """As 400 images of 1,000: chosen by chance, a class of 40 has from 28 to 55."""
    random = np.random.default_rng(0)
    label = random.choice(5, 1000, p=[0.4, 0.3, 0.2, 0.07, 0.03])
    group = np.where(random.random(1000) < 0.5, label, random.integers(0, 5, 1000))
    reference = images(label, group)
    shares = reference.counts(5, 5) / 1000
    for seed in range(20):
        found = requests.requested_labels(
            SampleConfig(request="real", count=400), (seed, "x"), POOL, reference, CROSSED
        )
        counts = np.zeros((5, 5), int)
        np.add.at(counts, found, 1)
        assert np.abs(counts.sum(axis=1) - 400 * shares.sum(axis=1)).max() <= 1
        assert np.abs(counts - 400 * shares).max() <= 2


@pytest.mark.parametrize("condition", ["uniform", "pool", "real"])
def test_the_request_of_an_id_does_not_depend_on_the_count(condition):
    few, many = conditions(condition, 7), conditions(condition, 45)
    for short, long in zip(few, many, strict=True):
        assert short.dtype == np.int32
        np.testing.assert_array_equal(short, long[:7])


def test_the_key_path_decides_the_order_of_labels_with_equally_many_images():
    orders = {conditions("real", len(REAL), seed)[0].tobytes() for seed in range(30)}
    assert len(orders) > 10
    assert conditions("pool", 10)[0].tobytes() == conditions("pool", 10)[0].tobytes()


def sample_section(**changes):
    return SimpleNamespace(
        **{
            "sampler": "ancestral",
            "steps": 3,
            "guidance": 0.5,
            "temperature": 1.0,
            "clip": True,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def sample():
    """Returns `(ids, label, group, seed=0) -> pixels` of a small U-Net of random weights."""
    net = UNet(
        3, 2, channels=8, multipliers=(1,), blocks=1, attention=(), heads=1, dropout=0.0, stem=2
    )
    one = jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(
        net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), one, one
    )
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: random.normal(0, 0.2, s.shape).astype(np.float32), shapes["params"]
    )
    program = make_sampler(net, COSINE, sample_section(), 8)

    def call(ids, label, group, seed=0):
        return program(
            params, key((seed, "noise")), np.uint32(ids), np.int32(label), np.int32(group)
        )

    return call


IDS = np.array([3, 17, 4, 9, 250, 1, 0, 70_000])


LABEL, GROUP = np.arange(8) % 3, np.arange(8) % 2


def test_an_image_does_not_depend_on_its_slot_or_on_the_other_images(sample):
    pixels = sample(IDS, LABEL, GROUP)
    order = np.array([6, 0, 7, 5, 1, 2, 3, 4])
    np.testing.assert_array_equal(sample(IDS[order], LABEL[order], GROUP[order]), pixels[order])
    ids, label, group = IDS + 1000, (LABEL + 1) % 3, 1 - GROUP
    ids[5], label[5], group[5] = IDS[2], LABEL[2], GROUP[2]
    other = sample(ids, label, group)
    np.testing.assert_array_equal(other[5], pixels[2])
    assert all(np.any(other[i] != pixels[i]) for i in range(8) if i != 5)


def test_an_image_depends_on_key_id_label_and_group(sample):
    pixels = sample(IDS, LABEL, GROUP)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (8, 8, 8, 3)
    assert pixels.std() > 10
    for changed in (
        sample(IDS, LABEL, GROUP, seed=1),
        sample(IDS + 1, LABEL, GROUP),
        sample(IDS, (LABEL + 1) % 3, GROUP),
        sample(IDS, LABEL, 1 - GROUP),
    ):
        assert np.all(np.any(changed != pixels, axis=(1, 2, 3)))


def test_an_unknown_group_is_sampled_as_the_null_group(sample):
    np.testing.assert_array_equal(
        sample(IDS, LABEL, np.full(8, -1)), sample(IDS, LABEL, np.full(8, 2))
    )


def sample_toy(answer, values, guidance=0.0, **changes):
    """Samples images in [-1, 1] of a network whose output is constant over an image."""

    def apply(variables, x, level, label, group):
        return jnp.zeros_like(x) + answer(variables["params"], level, label)[:, None, None, None]

    model = SimpleNamespace(num_classes=2, num_groups=0, apply=apply)
    section = sample_section(**{"sampler": "euler", "guidance": guidance, "clip": False, **changes})
    program = make_sampler(model, replace(EDM, sigma_min=0.1, sigma_max=1.0), section, 8)
    ids, label, group = np.uint32(IDS), np.int32(LABEL % 2), np.zeros(8, np.int32)
    return program(np.float32(values), key((0,)), ids, label, group) / 127.5 - 1


def constant(values, level, label):
    return values[label]


@pytest.mark.parametrize("w", [-1.0, 0.7])
def test_guidance_extrapolates_from_the_null_condition(w):
    a, b, null = 0.3, -0.2, 0.1
    mixed = [(1 + w) * a - w * null, (1 + w) * b - w * null, np.nan]
    guided = sample_toy(constant, [a, b, null], guidance=w)
    np.testing.assert_allclose(guided, sample_toy(constant, mixed), atol=1 / 127)


def test_temperature_scales_the_initial_noise():
    # One step from sigma = 1 with a network that answers 0 leaves c_skip = 0.25 / 1.25 of the
    # noise.
    hot, cold = (sample_toy(constant, [0, 0, 0], steps=1, temperature=t) for t in (1.0, 0.5))
    assert hot.std() == pytest.approx(0.2, rel=0.1)
    np.testing.assert_allclose(cold, hot / 2, atol=1 / 127)


def test_clip_bounds_every_estimate_of_the_data():
    # Two steps, sigma 1 -> 0.1 -> 0. The first estimate, 0.447 * 10 + 0.2 x, is cut to 1 or not;
    # the second is 0.962 x - 0.098 * 5 of x = 0.9 * (the first) + 0.1 * noise: 0.375 on average, or
    # far above 1.
    def answer(values, level, label):
        return jnp.where(level > -1, 10.0, -5.0)

    free, kept = (sample_toy(answer, [], steps=2, clip=clip) for clip in (False, True))
    assert np.all(free == 1)
    assert kept.mean() == pytest.approx(0.375, abs=0.03)
    assert kept.std() == pytest.approx(0.096, rel=0.1)
