"""Wilson's interval of a share (JASA 1927): what it may be given how many of how many were seen."""

from typing import Any

import numpy as np

Z = 1.959963984540054  # two-sided 95 %


def wilson(successes: Any, count: Any, z: float = Z) -> tuple[Any, Any]:
    """Ends of the interval, of the shape of `count`, z standard errors to either side; NaN for no count."""
    count = np.where(np.asarray(count) > 0, count, np.nan)
    share, total = successes / count, count + z**2
    centre = (successes + z**2 / 2) / total
    half = z * np.sqrt(share * (1 - share) * count + z**2 / 4) / total
    return np.maximum(centre - half, 0.0)[()], np.minimum(centre + half, 1.0)[()]
