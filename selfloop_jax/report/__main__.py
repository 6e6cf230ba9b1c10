"""`python -m selfloop_jax.report RUN [RUN ...] [--side RUN ...] [--out=FILE.html]`: writes the page.

--side names the runs of a side study, from which the loops are predicted (docs/dynamics.md).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.report.page import write
from selfloop_jax.runtime.cli import Parser


def _parser() -> Parser:
    parser = Parser(
        "report", "WORKDIR [WORKDIR ...] [--side WORKDIR ...] [--out=FILE.html]", __doc__
    )
    parser.add_argument(
        "workdirs", metavar="WORKDIR", nargs="+", type=Path, help="the folder of a run"
    )
    parser.add_argument(
        "--side", metavar="WORKDIR", nargs="+", type=Path, default=(), help="a side study"
    )
    parser.add_argument(
        "--out", metavar="FILE.html", type=Path, help="default: WORKDIR/report.html"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of `argv`; return the exit code."""
    try:
        args = _parser().parse_args(argv)
        print(write(args.workdirs, args.out, args.side))
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
