"""Command lines: --help is the manual of a program, and a mistake ends in one line."""

import argparse
import functools
import inspect
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

from selfloop_jax.errors import RunError, UsageError

P = ParamSpec("P")
# How the system says that there is no memory for a thread or a library.
NO_MEMORY = ("can't start new thread", "failed to map segment from shared object", "std::bad_alloc")


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes leave as `UsageError` with the usage behind them.

    Its help begins with `manual`, a docstring. Of a flag of several words, --image_size,
    --image-size is another spelling.
    """

    def __init__(self, prog: str, usage: str, manual: str | None):
        super().__init__(
            prog=f"python -m selfloop_jax.{prog}",
            description=inspect.cleandoc(manual or ""),
            allow_abbrev=False,
            formatter_class=_Manual,
        )
        self.usage_line = usage

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse has it, with both spellings of a flag."""
        hyphened = [name.replace("_", "-") for name in names if name.startswith("--")]
        return super().add_argument(*dict.fromkeys([*names, *hyphened]), **options)

    def error(self, message: str) -> NoReturn:
        """Called by argparse on whatever does not fit."""
        raise UsageError(f"{message}; usage: {self.usage_line}")


class _Manual(argparse.HelpFormatter):
    """Help whose description keeps its paragraphs, and lists and commands line by line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.split("\n\n"):
            # Lists and commands are indented; other lines are wrapped to the terminal.
            listed = any(line.startswith(" ") for line in paragraph.splitlines())
            filled = paragraph if listed else super()._fill_text(paragraph, width, indent)
            paragraphs.append(filled)
        return "\n\n".join(paragraphs)


def one_line_errors(program: Callable[P, int]) -> Callable[P, int]:
    """The program, whose errors of the user, of a run or of the disk become a line and a code."""

    @functools.wraps(program)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            code = program(*args, **kwargs)
            sys.stdout.flush()
            return code
        # OSError: for example a full disk, or a folder without permission.
        except (UsageError, RunError, OSError) as error:
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                # Python flushes once more when it exits.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + signal.SIGPIPE
            return print_error(error)
        except Exception as error:
            known = _out_of_memory(error) or _refused_by_jax(error)
            if known is None:
                raise
            return print_error(known)

    return guarded


def _out_of_memory(error: Exception) -> RunError | None:
    """The failure, where the system refused memory: to Python, for a thread or for a library."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return RunError("out of memory: this process gets no more from the system")
    return None


def _refused_by_jax(error: Exception) -> UsageError | None:
    """The mistake, where JAX could not be imported because a variable JAX_* has no valid value."""
    named = re.search(r"jax_\w+", str(error), re.IGNORECASE)
    variable = named[0].upper() if named else ""
    # A module whose import failed is not in sys.modules.
    if "jax" in sys.modules or variable not in os.environ:
        return None
    value = os.environ[variable]
    return UsageError(f"{variable} = {value}: must be a value that JAX takes: {error}")


def _reader_is_gone() -> bool:
    """Whether what reads standard output, such as `head`, has enough; other pipes can break too."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def print_error(error: UsageError | RunError | OSError) -> int:
    """Prints an error as one line; returns its exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return RunError.exit_code if isinstance(error, OSError) else error.exit_code


def add_register(parser: Parser) -> None:
    """Adds the flag for a file that registers what a run has from outside of the package."""
    parser.add_argument(
        "--register",
        metavar="FILE.py",
        type=Path,
        help="a Python file, such as the run's config, that adds networks or solvers of its own",
    )


def check_registered(check: Callable[[], None]) -> None:
    """Runs a check that names are in their tables; its UsageError says how more get there."""
    try:
        check()
    except UsageError as error:
        raise UsageError(f"{error}; --register=FILE.py names a file that adds others") from error


def make_folder(flag: str, path: Path) -> None:
    """Makes the folder that a flag names, before there is anything to write into it.

    UsageError where it cannot be written to or is not empty: old files among new ones would pass
    for results.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{flag}={path}: must be a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag}={path}: must be writable: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{flag}={path}: must be writable: no permission")
