"""A run, or several overlaid, as one self-contained HTML page and its PNGs. Imports no jax."""

from selfloop_jax.report.page import write

__all__ = ["write"]
