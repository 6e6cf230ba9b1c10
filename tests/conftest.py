"""Four CPU devices, compiled programs kept between runs, and no silent broadcasting."""

import jax

from selfloop_jax.runtime import environment

environment.configure(nproc=2, cpu_devices=4, deterministic=True)


jax.config.update("jax_numpy_rank_promotion", "raise")
