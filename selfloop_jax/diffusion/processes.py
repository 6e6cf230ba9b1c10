"""Diffusion processes and their training targets: pure mathematics, no parameters.

`ddpm` is Ho et al. 2020 (arXiv 2006.11239) in discrete time t = 1..T, with t = 0 the data; `edm` is
Karras et al. 2022 (arXiv 2206.00364) in noise levels sigma. Both ask a network F(input,
noise_level) for a linear target. To add one, give its class a row in PROCESSES and a section of its
name in `DiffusionConfig`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax.config import Config, DiffusionConfig, check_choice

# Where a solver in log(signal / noise) takes even steps: the ratio noise / signal from which images
# are more than noise, and one of about a grey level of 8 bits. Deviations of pixels add up: the
# widest directions of small images have one of 5, and 55 is ten times that. Within these bounds the
# two numbers are those that keep the variance best at 15 evaluations (benchmarks/variance.py).
NOISIEST, CLEANEST = 55.0, 0.0095

Network = Callable[[jax.Array, jax.Array], jax.Array]  # (x [N,...], noise_level [N]) -> [N,...]


def alphas_bar(schedule: str, timesteps: int) -> np.ndarray:
    """float64[T+1] cumulative products of 1 - beta, from alphas_bar[0] = 1.

    `linear`: Ho et al., section 4; `cosine`: arXiv 2102.09672, eq. 17.
    """
    if schedule == "linear":
        # Their range is for T = 1000. The factor keeps alphas_bar[T] about the same at another T.
        betas = np.linspace(1e-4, 0.02, timesteps) * (1000 / timesteps)
    else:
        # The offset s = 0.008 keeps the first betas from vanishing (arXiv 2102.09672, section 3.2).
        f = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = 1 - f[1:] / f[:-1]
    # Clipped at 0.999 as there: beta = 1 would leave no signal at T, and `denoise` divides by it.
    return np.concatenate([[1.0], np.cumprod(1 - np.minimum(betas, 0.999))])


def log_snr_ratios(first: float, steps: int) -> np.ndarray:
    """Ratios noise / signal float64[steps]: from `first` in one step to NOISIEST, then log-even.

    Above NOISIEST the denoised image hardly changes, so that a single step does.
    """
    if first <= NOISIEST or steps == 1:
        return np.geomspace(first, CLEANEST, steps) if steps > 1 else np.array([first])
    # From its clean end, which two steps must reach: they have no other.
    return np.append(first, np.geomspace(CLEANEST, NOISIEST, steps - 1)[::-1])


@dataclass(frozen=True)
class Ddpm:
    """Discrete-time process; the network predicts `eps` or `v` (arXiv 2202.00512)."""

    schedule: str
    timesteps: int
    prediction: str

    # alphas_bar[T] is almost 0, so x_T is almost standard normal.
    prior_scale = 1.0

    def training_target(
        self, key: jax.Array, x_0: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Network input, noise level and target, of one image (Ho et al., algorithm 1)."""
        key_t, key_eps = jax.random.split(key)
        t = jax.random.randint(key_t, (), 1, self.timesteps + 1)
        eps = jax.random.normal(key_eps, x_0.shape)
        signal, noise = self._scales(t)
        # v = alpha eps - sigma x_0 (arXiv 2202.00512, section 4).
        target = eps if self.prediction == "eps" else signal * eps - noise * x_0
        return signal * x_0 + noise * eps, self._level(t), target

    def denoise(self, network: Network, x: jax.Array, t: jax.Array) -> jax.Array:
        """x_0 from x_t and the network's prediction."""
        signal, noise = self._scales(t)
        output = network(x, jnp.broadcast_to(self._level(t), x.shape[:1]))
        # eps: Ho et al., eq. 15. v: x_0 = alpha x_t - sigma v (arXiv 2202.00512, section 4).
        if self.prediction == "eps":
            return (x - noise * output) / signal
        return signal * x - noise * output

    def times(self, steps: int) -> np.ndarray:
        """int32[steps+1] from T down to 0, evenly spaced."""
        # Rounded, because T need not be a multiple of `steps`.
        return np.rint(np.linspace(self.timesteps, 0, steps + 1)).astype(np.int32)

    def log_snr_times(self, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Times int32[n], descending from T, with signal and noise float64[n] there.

        The times nearest to even steps in log(signal / noise); n is `steps`, or less where several
        steps have one nearest time.
        """
        table = alphas_bar(self.schedule, self.timesteps)[1:]
        ratio = np.sqrt((1 - table) / table)
        wanted = log_snr_ratios(float(ratio[-1]), steps)
        nearest = np.abs(np.log(ratio[:, None] / wanted)).argmin(axis=0)
        places = np.unique(nearest)[::-1]
        at = table[places]
        return (places + 1).astype(np.int32), np.sqrt(at), np.sqrt(1 - at)

    def _scales(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """sqrt(alphas_bar[t]) and sqrt(1 - alphas_bar[t]), each rounded once from float64."""
        # NumPy computes the table in float64 when the program is traced: a product of a thousand
        # float32 factors would lose digits, above all of 1 - alphas_bar near t = 0.
        table = alphas_bar(self.schedule, self.timesteps)
        signal = jnp.asarray(np.sqrt(table), jnp.float32)
        noise = jnp.asarray(np.sqrt(1 - table), jnp.float32)
        return signal[t], noise[t]

    def _level(self, t: jax.Array) -> jax.Array:
        """What the network's sinusoid sees: t on a scale of 1000."""
        return t.astype(jnp.float32) * (1000 / self.timesteps)


@dataclass(frozen=True)
class Edm:
    """Continuous noise levels; preconditioning and loss weight of Karras et al., table 1.

    sigma_data: the root mean square of the pixels. In their equations it is the standard deviation,
    of data whose mean is 0. Input, target and loss weight are of size 1 at every noise level where
    it is the root of E[x_0^2], mean included; digits on black have a mean of -0.8 to -0.9.
    """

    sigma_data: float
    p_mean: float
    p_std: float
    sigma_min: float
    sigma_max: float
    rho: float

    def __post_init__(self):
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data = {self.sigma_data}: `for_data` puts it in place of 0")

    @property
    def prior_scale(self) -> float:
        """Standard deviation of the sampler's initial noise."""
        return self.sigma_max

    def training_target(
        self, key: jax.Array, x_0: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Network input, noise level and target, of one image.

        The weighted loss of eq. 8 is then the target's plain mean squared error.
        """
        key_sigma, key_noise = jax.random.split(key)
        # ln sigma is normal (table 1, row "Noise distribution").
        sigma = jnp.exp(self.p_mean + self.p_std * jax.random.normal(key_sigma))
        x = x_0 + sigma * jax.random.normal(key_noise, x_0.shape)
        # By eq. 8, F's target is (x_0 - c_skip x) / c_out, and the weight lambda c_out^2 is 1.
        skip, out, scale, level = self._precondition(sigma)
        return scale * x, level, (x_0 - skip * x) / out

    def denoise(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """D(x; sigma) of eq. 7."""
        skip, out, scale, level = self._precondition(sigma)
        return skip * x + out * network(scale * x, jnp.broadcast_to(level, x.shape[:1]))

    def times(self, steps: int) -> np.ndarray:
        """float32[steps+1] noise levels from sigma_max to sigma_min, then 0 (eq. 5)."""
        # Even steps in sigma^(1/rho): a larger rho takes more of them at low noise.
        first = self.sigma_max ** (1 / self.rho)
        last = self.sigma_min ** (1 / self.rho)
        ramp = np.linspace(first, last, steps)
        return np.append(ramp**self.rho, 0.0).astype(np.float32)

    def log_snr_times(self, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Noise levels float32[steps], descending from sigma_max in even steps of their logarithm.

        With signal and noise float64[steps] there. They end above sigma_min, at less than a grey
        level: below that the last step, to the denoised image, has nothing to add.
        """
        sigma = log_snr_ratios(self.sigma_max, steps)
        return sigma.astype(np.float32), np.ones(steps), sigma

    def _precondition(self, sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """c_skip, c_out, c_in, and c_noise on the sinusoid's scale."""
        # Table 1, rows "Skip scaling", "Output scaling" and "Input scaling".
        total = sigma**2 + self.sigma_data**2
        c_out = sigma * self.sigma_data / jnp.sqrt(total)
        c_skip = self.sigma_data**2 / total
        c_in = 1 / jnp.sqrt(total)
        # ln(sigma) / 4 of Karras et al., on the sinusoid's scale of 1000.
        return c_skip, c_out, c_in, 250 * jnp.log(sigma)


Process = Ddpm | Edm


PROCESSES: dict[str, type[Ddpm] | type[Edm]] = {"ddpm": Ddpm, "edm": Edm}


def check(config: Config) -> None:
    """Raises UsageError for a process that is none."""
    check_choice("diffusion.process", config.diffusion.process, PROCESSES)


def for_data(section: DiffusionConfig, pixel_rms: float) -> DiffusionConfig:
    """The section with `edm.sigma_data` from the data, where the config leaves it to them.

    pixel_rms: root mean square of the training pixels in [-1, 1].
    """
    if section.edm.sigma_data:
        return section
    return replace(section, edm=replace(section.edm, sigma_data=pixel_rms))


def build(section: DiffusionConfig) -> Process:
    """The process that section `diffusion` names; `for_data` has completed the section."""
    return PROCESSES[section.process](**asdict(getattr(section, section.process)))
