"""The console script `selfloop`: one word per program, each the same as its `python -m` form.

    selfloop run --config=configs/quickstart.py     python -m selfloop_jax.main
    selfloop sweep CONFIG                           python -m selfloop_jax.sweep
    selfloop report WORKDIR ...                     python -m selfloop_jax.report
    selfloop sample WORKDIR --out=DIR               python -m selfloop_jax.sampling
    selfloop measure fairness|fidelity ...          python -m selfloop_jax.measure
    selfloop export WORKDIR --out=DIR               python -m selfloop_jax.export

`selfloop COMMAND --help` is the manual of a command.
"""

import importlib
import sys
from collections.abc import Sequence

from selfloop_jax.errors import UsageError
from selfloop_jax.runtime.cli import one_line_errors

PROGRAMS = {  # module and function, which takes the arguments and returns the exit code
    "run": ("selfloop_jax.main", "program"),
    "sweep": ("selfloop_jax.sweep", "program"),
    "report": ("selfloop_jax.report.__main__", "main"),
    "sample": ("selfloop_jax.sampling.__main__", "program"),
    "measure": ("selfloop_jax.measure.__main__", "main"),
    "export": ("selfloop_jax.export", "program"),
}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program that the first word names; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if arguments[0] == "--version":
        from selfloop_jax import __version__

        print(__version__)
        return 0
    name, *rest = arguments
    if name not in PROGRAMS:
        raise UsageError(f"{name}: must be one of {' | '.join(PROGRAMS)}")
    module, function = PROGRAMS[name]
    # Imported here, so that `selfloop --help` is immediate.
    code: int = getattr(importlib.import_module(module), function)(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
