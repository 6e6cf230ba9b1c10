"""The shipped quickstart, shrunk, run as a user runs it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


CONFIG = "--config=configs/quickstart.py"


SHRUNK = [
    f"--config.{override}"
    for override in (
        *(
            "loop.generations=3",
            "report.enabled=False",
            "measure.generated_only=first",
            "diffusion.unet.channels=8",
            "diffusion.steps=24",
        ),
        *(
            "diffusion.later.steps=16",
            "diffusion.batch=32",
            "classifier.width=4",
            "classifier.stages=(1,1)",
        ),
        *(
            "classifier.steps=8",
            "classifier.later.steps=8",
            "classifier.batch=32",
            "sample.count=200",
        ),
        *(
            "sample.steps=3",
            "sample.batch_per_device=20",
            "checkpoint.interval_steps=8",
            "measure.batch=360",
        ),
        *(
            "data.bias.per_class=(.3,.3,.3,.3,.3,.7,.7,.7,.7,.7)",
            "log.every_steps=4",
            "checkpoint.keep=2",
        ),
        "measure.replicates=100",
    )
]


def command(workdir: Path, *extra: str) -> list[str]:
    """The command line of a shrunk run; `extra` overrides what it sets."""
    return [
        sys.executable,
        "-m",
        "selfloop_jax.main",
        CONFIG,
        *SHRUNK,
        f"--workdir={workdir}",
        *extra,
    ]


def main(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """`python -m selfloop_jax.main` with nothing but `arguments`, from the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", "selfloop_jax.main", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def run(workdir: Path, *extra: str) -> subprocess.CompletedProcess:
    """A shrunk run to its end."""
    return subprocess.run(command(workdir, *extra), cwd=ROOT, capture_output=True, text=True)
