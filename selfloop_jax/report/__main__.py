"""Write the report of one run, or of several overlaid, as one self-contained HTML page.

    python -m selfloop_jax.report runs/quickstart
    python -m selfloop_jax.report runs/loop-* runs/control-* --side runs/side-* --out=study.html

What it reads:
  WORKDIR    folders of runs with at least one finished generation. Several runs need one data
             source. Runs that differ only in their seed are one arm; of each loop arm the page
             shows the images of its first seed. A loop that has its planned control (section
             `verdict` of the config) gets a verdict.
  --side     the runs of a side study, with other seeds: the loops are forecast from them
             (docs/dynamics.md)

What it writes:
  WORKDIR/report.html    the page of one run; of several FIRST/overlay.html; or FILE.html of --out
  report/*.png           its figures, in a folder with the name of the page
  report/numbers.csv     every number of every run and generation, with interval, null, p-value and
                         baseline; `python -m selfloop_jax.report.markdown` makes tables from it

The page needs no network and no other file. Reading needs no accelerator: no jax is imported.

Exit codes: 0 written; 1 a damaged record; 2 a mistake in the arguments. Nothing is written then.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from selfloop_jax import report
from selfloop_jax.runtime.cli import Parser, one_line_errors

USAGE = "WORKDIR [WORKDIR ...] [--side WORKDIR ...] [--out=FILE.html]"


def _parser() -> Parser:
    parser = Parser("report", USAGE, __doc__)
    parser.add_argument(
        "workdirs", metavar="WORKDIR", nargs="+", type=Path, help="the folder of a run"
    )
    parser.add_argument(
        "--side",
        metavar="WORKDIR",
        nargs="+",
        type=Path,
        default=(),
        help="the folder of a run of the side study",
    )
    parser.add_argument(
        "--out", metavar="FILE.html", type=Path, help="default: WORKDIR/report.html"
    )
    return parser


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of `argv`; returns the exit code."""
    args = _parser().parse_args(argv)
    print(report.write(args.workdirs, args.out, args.side))
    return 0


if __name__ == "__main__":
    sys.exit(main())
