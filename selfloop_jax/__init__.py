"""Self-consuming loops of a generative model and a classifier, and the subgroup bias they carry.

The public API, imported when it is first used; none of it imports jax:

    TestSet         columns of a test set: label, prediction, group
    fairness        `fairness.summary(test_set)`: every fairness metric
    METRICS         the table of metrics: key, title, direction
    read_run        a workdir as plain data
    default_config  the default config, a ConfigDict

`selfloop_jax.measure.fidelity` (FID, KID, precision, recall, density, coverage on arrays of
features) uses jax and is imported by its own name.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "TestSet": ("selfloop_jax.measure.test_set", "TestSet"),
    "fairness": ("selfloop_jax.measure.fairness", None),
    "METRICS": ("selfloop_jax.measure.metrics", "METRICS"),
    "read_run": ("selfloop_jax.analysis.runs", "read_run"),
    "default_config": ("selfloop_jax.config", "default"),
}
__all__ = ["METRICS", "TestSet", "__version__", "default_config", "fairness", "read_run"]


def __getattr__(name: str) -> Any:
    """The public object of that name, imported now."""
    # PEP 562: called only for a name that the module lacks.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted(__all__)
