"""Command lines of all programs but `main`: a mistake ends in one line."""

import argparse
import sys
from typing import NoReturn

from selfloop_jax.errors import RunError, UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes leave as `UsageError` with the usage behind them."""

    def __init__(self, prog: str, usage: str, description: str | None):
        super().__init__(
            prog=f"python -m selfloop_jax.{prog}", description=description, allow_abbrev=False
        )
        self.usage_line = usage

    def error(self, message: str) -> NoReturn:
        """Called by argparse on whatever does not fit."""
        raise UsageError(f"{message}; usage: {self.usage_line}")


def print_error(error: UsageError | RunError) -> int:
    """Prints an error of the user's or of a run as one line; returns its exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code
