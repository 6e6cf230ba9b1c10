"""Networks and solvers mix no dtypes by accident."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict():
    """Nothing is promoted without an explicit cast."""
    with jax.numpy_dtype_promotion("strict"):
        yield
