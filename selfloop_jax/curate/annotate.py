"""Where the label and the group of a generated image come from."""

from typing import Any

import numpy as np

from selfloop_jax.data.colorize import Colours, read_group


def label(section: Any, condition: np.ndarray, logits: dict[str, np.ndarray]) -> np.ndarray:
    """int32[N] by `loop.label_source`: the condition, or the best class of one classifier's logits."""
    if section.label_source == "condition":
        return condition
    return logits[section.label_source].argmax(axis=1).astype(np.int32)


def group(section: Any, condition: np.ndarray, pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """int32[N] by `loop.group_source`: the condition, or what the colour oracle reads from the pixels."""
    return condition if section.group_source == "condition" else read_group(pixels, colours)
