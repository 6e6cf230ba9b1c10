"""Where a generation's time goes by kind of work, from JAX's profiler: the second one of a shortened run.

    python -m benchmarks.profile [--config=configs/quickstart.py] [--shorter=2]

Steps and drawn images are divided by --shorter; what takes as long however short the run is weighs
as much more. A JSON line: seconds, and by kind of work the share of the devices' time; `idle` is
what no operation filled.
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

# By the names that XLA gives its operations; the first that fits.
KINDS = {
    "exchange between devices, waiting included": r"all-(reduce|gather|to-all)|nccl",
    "convolutions and matrix products": r"ynn|conv(?!ert)|dot|gemm|cublas|cudnn|cutlass|onednn",
    "transposes and copies": r"transpose|copy|memcpy",
    "elementwise and sums": r"",
}


# Their parts are operations of their own.
OUTER = re.compile(r"(while|call|conditional)[.\d]*$")


def shortened(config: ConfigDict, divisor: int) -> configs.Config:
    """Two generations with so many times fewer steps and drawn images."""
    config.loop.generations = 2
    for section in (config.diffusion, config.classifier):
        section.steps, section.later.steps = (
            s // divisor for s in (section.steps, section.later.steps)
        )
    config.annotator.steps //= divisor
    config.sample.count //= divisor
    return configs.typed(config)


def operations(trace: Path) -> Iterator[tuple[str, float]]:
    """Names of operations that a device ran, and seconds, from what the profiler wrote below a folder."""
    (file,) = trace.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    for plane in [p for p in planes if p.name.startswith("/device:")] or planes:
        for line in plane.lines:
            for event in line.events:
                if any(name == "hlo_op" for name, _ in event.stats) and not OUTER.match(event.name):
                    yield event.name, event.duration_ns / 1e9


def shares(found: Iterator[tuple[str, float]], device_seconds: float) -> dict[str, float]:
    """By kind of work, the share of the devices' time; largest first."""
    seconds: collections.Counter[str] = collections.Counter()
    for name, duration in found:
        seconds[next(kind for kind, names in KINDS.items() if re.search(names, name))] += duration
    seconds["idle"] = device_seconds - seconds.total()
    return {kind: round(value / device_seconds, 3) for kind, value in seconds.most_common()}


def main() -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.py"))
    parser.add_argument("--shorter", type=int, default=2)
    args = parser.parse_args()
    config = configs.typed(shortened(presets.load(args.config).get_config(), args.shorter))
    environment.configure(*presets.threads(config))
    context = setup.open_run(config, lambda: False)
    study = self_consuming.STUDY
    with tempfile.TemporaryDirectory() as folder:
        workdir, trace = Path(folder) / "run", Path(folder) / "trace"
        store.write_json(workdir / "config.json", config.to_dict())
        runner.run_stage(study, setup.generation(context, 0, workdir, workdir), True)
        with jax.profiler.trace(str(trace)):
            started = time.perf_counter()
            runner.run_stage(study, setup.generation(context, 1, workdir, workdir), True)
            seconds = time.perf_counter() - started
        found = shares(operations(trace), seconds * jax.local_device_count())
    line = {
        "config": args.config.stem,
        "shorter": args.shorter,
        "device": environment.device_info()["device_kind"],
    }
    print(json.dumps(line | {"seconds": round(seconds, 2), "shares": found}), flush=True)


if __name__ == "__main__":
    main()
