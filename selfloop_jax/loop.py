"""The self-consuming loop. The order of a generation's phases is a contract:

    annotator -> pool -> diffusion -> sample -> classifier -> label -> generated_classifier -> measure
    -> commit

Generation 0's pool is real data only; what the generator of generation g draws enters the pool of g+1.
Images are labelled after their generation's classifier is trained: `loop.label_source = previous` is the
classifier before the pool that the images enter, so that generation 0's images have one too.

A phase ends by writing gen_NNNN/<phase>.json; a phase with that file is not run again. record.json comes
last, by rename: the commit.
"""

import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfloop_jax import augment, classify, evaluate, hosts, log, parallel, phases, report, store, takeover
from selfloop_jax import config as configs
from selfloop_jax.data import dataset, pool
from selfloop_jax.errors import RunError, UsageError

PHASES: dict[str, Callable[[phases.Generation], phases.Entry]] = {
    "annotator": phases.annotator_phase,
    "pool": phases.pool_phase,
    "diffusion": phases.diffusion_phase,
    "sample": phases.sample_phase,
    "classifier": phases.classifier_phase,
    "label": phases.label_phase,
    "generated_classifier": phases.generated_classifier_phase,
    "measure": evaluate.measure_phase,
}
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml-collections",
    "scikit-learn",
    "mlxtend",
)
PREVIEWS_PER_CLASS = 8
MEMORY = {  # what to change where a phase runs out of memory
    "diffusion": "lower diffusion.batch or set diffusion.unet.remat = True",
    "sample": "lower sample.batch_per_device",
    "classifier": "lower classifier.batch",
    "generated_classifier": "lower classifier.batch",
    "annotator": "lower annotator.batch",
}


def run(config: Any, workdir: Path, accept_manifest: bool, stop: Callable[[], bool]) -> None:
    """Makes every generation that is not committed yet, then the report.

    `stop()` is asked between dispatches; when true, progress is saved and train.Stopped raised.
    """
    check(config)
    if (workdir / "config.json").exists():
        store.check_config(workdir, config.to_dict())
    stop = hosts.consent(stop)
    study = phases.Study(config, hosts.first_alone(lambda: load(config)), stop)
    now = manifest(study.data)
    hosts.check_same({"config": config.to_dict(), "inputs": study.inputs, **{n: now[n] for n in store.EXACT}})
    taking = config.loop.generation_zero and not (workdir / "gen_0000" / "record.json").exists()
    if taking:
        takeover.check(study, now, accept_manifest)
    with store.lock(workdir):
        exact = hosts.led(store.leading and _settle(study, workdir, now, taking, accept_manifest))
        done = store.records(workdir, config.loop.generations)
        wanted = config.loop.generations
        if len(done) == wanted and (workdir / "report.html").exists() >= config.report.enabled:
            log.say(f"complete: {wanted} generations in {workdir}")
        else:
            _make(study, workdir, hosts.led(len(done)), exact)
    if config.report.enabled and store.leading:
        print(f"report: {workdir / 'report.html'}")


def _settle(study: phases.Study, workdir: Path, now: store.Json, taking: bool, accept_manifest: bool) -> bool:
    """Writes or checks what a run has beside its generations; whether all of it is exact."""
    config = study.config
    store.settle_inputs(workdir, study.inputs)
    if taking:
        takeover.take_manifest(config, workdir)
    exact = store.settle_manifest(workdir, now, accept_manifest)
    store.settle_config(workdir, config.to_dict())
    if taking:
        takeover.take(config, workdir)
    return exact


def check(config: Any) -> None:
    """Raises UsageError where the config cannot be run on the devices at hand, whatever the data."""
    configs.check(config)
    configs.check_devices(config, parallel.device_count())
    coloured = config.data.colorize != "none"
    for name in configs.classifiers(config):
        classify.check(config[name], name)
        augment.check(config[name].augment, f"{name}.augment", config.data.image_size, coloured)


def load(config: Any, prepare: bool = True) -> dataset.Dataset:
    """The run's real images; UsageError where they, or the pools to be made of them, do not fit."""
    data = dataset.load(config.data, config.seed, prepare)
    address = (config.seed, "pool")
    sizes = len(data.reserve), config.sample.count
    pool.check(config.pool, address, config.loop.generations, data.train, *sizes)
    if config.loop.control != "none":
        takeover.check_control_of(config)
        growing = pool.needs(config.pool, 2).start == 0  # then the last pool has the stand-ins of all others
        for g in range(config.loop.generations - 1 if growing else 1, config.loop.generations):
            phases.real_in_place(config, data, pool.needs(config.pool, g), {})
    needed = config.measure.split == "validation" or "annotator" in configs.classifiers(config)
    if needed and not len(data.validation):
        raise UsageError(
            f"data.validation_share = {config.data.validation_share}: allowed are shares that leave images: "
            "an annotator and measure.split = validation need them"
        )
    return data


def _make(study: phases.Study, workdir: Path, first: int, exact: bool) -> None:
    """Generations from `first` on, and the report."""
    config = study.config
    if first < config.loop.generations:
        write_previews(study, workdir)
    for number in range(first, config.loop.generations):
        generation(phases.Generation(study, number, workdir, workdir), exact)
    if config.report.enabled and store.leading:
        report.write([workdir])


def generation(gen: phases.Generation, exact: bool) -> store.Json:
    """Runs the phases that are not done yet and commits; the record."""
    compilations = parallel.count_compilations()
    for name, phase in PHASES.items():
        path = gen.folder / f"{name}.json"
        if hosts.led(not path.exists()):
            gen.parents = {}
            started = time.perf_counter()
            entry = _roomy(phase, gen, name)
            seconds = round(time.perf_counter() - started, 3)
            store.write_json(path, entry | {"parents": gen.parents, "seconds": seconds})
            hosts.meet()
        gen.entries[name] = store.read_json(path)
    record = _record(gen, exact, compilations())
    store.write_json(gen.folder / "record.json", record)
    if store.leading:
        shutil.rmtree(gen.folder / "samples.part", ignore_errors=True)
    hosts.meet()
    accuracy, gap = (record["metrics"][m] for m in ("accuracy", "equal_opportunity_difference_mean"))
    log.say(
        f"generation {gen.number} done: accuracy {accuracy:.3f}, mean equal opportunity difference "
        f"{'undefined' if gap is None else format(gap, '.3f')}, {sum(record['seconds'].values()):.0f} s"
    )
    return record


def _roomy(phase: Callable[[phases.Generation], phases.Entry], gen: phases.Generation, name: str) -> Any:
    """A phase's entry; RunError that names what to lower where the memory of a device does not suffice."""
    try:
        return phase(gen)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            if jax.process_count() == 1:
                raise  # no other process that could have failed: a fault of ours, told whole
            raise RunError(f"generation {gen.number}, {name}: {str(error).splitlines()[0]}") from error
        raise RunError(
            f"generation {gen.number}, {name}: out of memory: {MEMORY.get(name, 'lower measure.batch')}; "
            "a pool that is too large can stay on the host with data.placement = host"
        ) from error


def _record(gen: phases.Generation, exact: bool, compilations: int) -> store.Json:
    """All that is said of a generation, JSON ready."""
    config, entries = gen.study.config, gen.entries
    parents, digests = {}, {}
    for entry in entries.values():
        parents |= entry["parents"]
        digests |= entry["digests"]
    if gen.number:
        before = store.generation_dir(gen.home, gen.number - 1) / "record.json"
        parents[f"gen_{gen.number - 1:04d}/record.json"] = store.digest_record(store.read_json(before))
    optional = {
        "annotator": entries["annotator"].get("annotator"),
        "spurious": entries["measure"]["spurious"],
        "initial_weights": gen.study.inputs["initial_weights"] or None,
    }
    rates = {n: e["images_per_second"] for n, e in entries.items() if e.get("images_per_second")}
    return {
        "generation": gen.number,
        "seed": config.seed,
        "exact": exact,
        "split": entries["measure"]["split"],
        "data": gen.study.inputs["data"],
        "pool": entries["pool"]["pool"],
        "metrics": entries["measure"]["metrics"],
        "uncertainty": entries["measure"]["uncertainty"],
        "samples": entries["measure"]["samples"],
        "fidelity": entries["measure"]["fidelity"],
        **{name: value for name, value in optional.items() if value is not None},
        "digests": digests,
        "parents": dict(sorted(parents.items())),
        "seconds": {name: entry["seconds"] for name, entry in entries.items()},
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "compilations": compilations,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_state(),
    }


def manifest(data: dataset.Dataset) -> store.Json:
    """What the bits of a run hang on beside its config, and the code's state."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        **versions,
        **parallel.describe(),
        "stand_in": data.facts.get("stand_in"),
        "git": git_state(),
        "host": platform.node(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def git_state() -> str:
    """Commit of the code, with +dirty where files differ from it; empty outside a checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+dirty",
        "--abbrev=40",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_previews(study: phases.Study, workdir: Path) -> None:
    """A few real training images per class, for the report to set beside the drawn ones."""
    images = study.data.train
    rows = [np.flatnonzero(images.label == c)[:PREVIEWS_PER_CLASS] for c in range(len(study.data.classes))]
    shown = images.take(np.concatenate(rows))
    arrays = {"pixels": shown.pixels, "label": shown.label, "group": shown.group}
    store.write_npz(workdir / "real.npz", arrays)
