"""Four CPU devices, compiled programs kept between runs, and no silent broadcasting."""

import types

import jax

from selfloop_jax.runtime import environment

environment.configure(types.SimpleNamespace(nproc=2, cpu_devices=4, deterministic=True))


jax.config.update("jax_numpy_rank_promotion", "raise")
