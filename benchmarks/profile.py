"""Profiles generation 1 of a shortened run: the share of each kind of work in its time.

    python -m benchmarks.profile [--config=configs/quickstart.py] [--shorter=2]

--shorter divides the numbers of steps and of generated images, so parts of constant cost weigh more
than in a whole run. The output is one JSON line: the seconds, and the share of each kind of work in
the devices' time. `idle` is the share without any operation.
"""

import argparse
import collections
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from benchmarks import presets
from selfloop_jax import config as configs
from selfloop_jax.loop import runner, setup
from selfloop_jax.runtime import environment, store
from selfloop_jax.studies import self_consuming

# Patterns of the names that XLA gives its operations; the first match decides.
KINDS = {
    "exchange between devices, waiting included": r"all-(reduce|gather|to-all)|nccl",
    "convolutions and matrix products": r"ynn|conv(?!ert)|dot|gemm|cublas|cudnn|cutlass|onednn",
    "transposes and copies": r"transpose|copy|memcpy",
    "elementwise and sums": r"",
}


# The profiler lists the operations inside these separately, so counting them would count twice.
OUTER = re.compile(r"(while|call|conditional)[.\d]*$")


def shortened(config: ConfigDict, divisor: int) -> configs.Config:
    """Returns two generations with `divisor` times fewer steps and generated images."""
    config.loop.generations = 2
    for section in (config.diffusion, config.classifier):
        section.steps, section.later.steps = (
            s // divisor for s in (section.steps, section.later.steps)
        )
    config.annotator.steps //= divisor
    config.sample.count //= divisor
    return configs.typed(config)


def operations(trace: Path) -> Iterator[tuple[str, float]]:
    """Yields name and seconds of each operation in a trace; `trace` is the profiler's folder."""
    (file,) = trace.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    for plane in [p for p in planes if p.name.startswith("/device:")] or planes:
        for line in plane.lines:
            for event in line.events:
                if any(name == "hlo_op" for name, _ in event.stats) and not OUTER.match(event.name):
                    yield event.name, event.duration_ns / 1e9


def shares(found: Iterator[tuple[str, float]], device_seconds: float) -> dict[str, float]:
    """Returns the share of each kind of work in the devices' time, largest first."""
    seconds: collections.Counter[str] = collections.Counter()
    for name, duration in found:
        seconds[next(kind for kind, names in KINDS.items() if re.search(names, name))] += duration
    seconds["idle"] = device_seconds - seconds.total()
    return {kind: round(value / device_seconds, 3) for kind, value in seconds.most_common()}


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--shorter", type=int, default=2)
    args = parser.parse_args()
    config = shortened(presets.read(args.config), args.shorter)
    environment.configure(**configs.environment(config))
    context = setup.open_run(config, lambda: False)
    study = self_consuming.STUDY
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        trace = Path(folder) / "trace"
        store.write_json(workdir / "config.json", config.to_dict())
        runner.run_stage(study, setup.generation(context, 0, workdir, workdir), entry=0)
        with jax.profiler.trace(str(trace)):
            started = time.perf_counter()
            runner.run_stage(study, setup.generation(context, 1, workdir, workdir), entry=0)
            seconds = time.perf_counter() - started
        found = shares(operations(trace), seconds * jax.local_device_count())
    line = {
        "config": Path(args.config).stem,
        "shorter": args.shorter,
        "device": environment.device_info()["device_kind"],
    }
    print(json.dumps(line | {"seconds": round(seconds, 2), "shares": found}), flush=True)


if __name__ == "__main__":
    main()
