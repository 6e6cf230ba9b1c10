"""Every field of a config with its default, and the check that a config makes sense."""

from selfloop_jax.config.schema import (
    BIASES,
    CHOICES,
    check,
    check_devices,
    classifiers,
    default,
    parse_arg,
    steps_per_dispatch,
)

__all__ = [
    "BIASES",
    "CHOICES",
    "check",
    "check_devices",
    "classifiers",
    "default",
    "parse_arg",
    "steps_per_dispatch",
]
