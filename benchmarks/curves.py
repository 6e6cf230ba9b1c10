"""Compares the training losses of this revision and another one on the same keys.

    git worktree add ../before <commit>
    python -m benchmarks.curves --before=../before [--presets=quick,small] [--steps=500]

The output is a JSON line per preset and network. Differences are relative to the loss. Where a
change reorders sums, they start at rounding error and grow with the steps, since training separates
neighbouring weights.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import revisions

# Run in a checkout with its own modules, so that any revision can be compared.
PROGRAM = """
import json, sys
import jax, numpy as np
from benchmarks import cases, presets
from selfloop_jax.data import images
from selfloop_jax.runtime import environment, keys, parallel
from selfloop_jax.training import classifier, fit, generator

preset, case, steps = sys.argv[1:]
steps = int(steps)
config = presets.preset(preset, devices=2)
threads = config.parallel
environment.configure(threads.nproc, threads.cpu_devices, threads.deterministic)
side = config.data.image_size
if case == "diffusion_train":
    net, process = generator.build(config.diffusion, presets.CLASSES, 0)
    trainer = generator.make_trainer(net, process, config.diffusion, side, 1)
else:
    net = classifier.build(config.classifier, presets.CLASSES)
    trainer = classifier.make_trainer(net, config.classifier, side, 1)
shown = cases.pool(side)
arrays = fit.put_on_devices(fit.training_columns(shown), len(shown), "device")
key = parallel.replicate(keys.key((0, "noise")))
state = trainer.start(trainer.init(jax.random.key(0)), 1e-3, float(steps))
losses = []
for step in range(steps):
    index = images.batch_indices((0, "order"), len(shown), trainer.batch, step)[None]
    state, metrics = trainer.program(state, arrays, parallel.shard_steps({"index": index}), key)
    losses.append(float(metrics["loss"][0]))
print(json.dumps({"losses": losses, "device": environment.device_info()["device_kind"]}))
"""
# The same with the names that modules had before 0.2.
BEFORE_0_2 = """
import json, sys
import jax, numpy as np
from benchmarks import ours, presets
from selfloop_jax import parallel, rng, train
from selfloop_jax.data import images

preset, case, steps = sys.argv[1:]
steps = int(steps)
config = presets.preset(preset, devices=2)
parallel.configure(config.parallel)
side = config.data.image_size
dtype = None
if case == "diffusion_train":
    net, process = ours.generate.build(config.diffusion, presets.CLASSES, 0, dtype)
    trainer = ours.generate.make_trainer(net, process, config.diffusion, side, 1)
else:
    trainer = ours.classify.make_trainer(
        ours.classify.build(config.classifier, presets.CLASSES, dtype), config.classifier, side, 1
    )
start = trainer.start if hasattr(trainer, "start") else trainer.restart
shown = ours.pool(side)
arrays = train.place_pool(shown, len(shown), "device")
key = parallel.replicate(rng.key((0, "noise")))
state = start(trainer.init(jax.random.key(0)), 1e-3, float(steps))
losses = []
for step in range(steps):
    index = images.batch_at((0, "order"), len(shown), trainer.batch, step)[None]
    state, metrics = trainer.program(state, arrays, parallel.split_steps({"index": index}), key)
    losses.append(float(metrics["loss"][0]))
print(json.dumps({"losses": losses, "device": parallel.describe()["device_kind"]}))
"""


def losses(folder: str, preset: str, case: str, steps: int) -> dict[str, Any]:
    """Trains in the checkout in `folder` and returns its losses and its device."""
    renamed = (Path(folder) / "benchmarks" / "cases.py").exists()
    program = PROGRAM if renamed else BEFORE_0_2
    command = [sys.executable, "-c", program, preset, case, str(steps)]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    """Prints a JSON line per preset and network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="a checkout of the other revision")
    parser.add_argument("--presets", default="quick,small")
    parser.add_argument("--cases", default="diffusion_train,classifier_train")
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    for preset in args.presets.split(","):
        for case in args.cases.split(","):
            now, then = (losses(folder, preset, case, args.steps) for folder in (".", args.before))
            a = np.array(now["losses"])
            b = np.array(then["losses"])
            difference = np.abs(a - b) / np.abs(b)
            line = {
                "against": revisions.commit(args.before),
                "preset": preset,
                "case": case,
                "device": now["device"],
                "steps": args.steps,
                "first_relative_difference": float(f"{difference[0]:.2g}"),
                "largest_relative_difference": float(f"{difference.max():.2g}"),
                "mean_last_fifty": [round(float(x[-50:].mean()), 5) for x in (a, b)],
                "last_loss": [round(float(x[-1]), 5) for x in (a, b)],
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
