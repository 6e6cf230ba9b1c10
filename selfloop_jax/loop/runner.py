"""The self-consuming loop. The order of a generation's phases is a contract:

    annotator -> pool -> diffusion -> sample -> classifier -> label -> generated_classifier ->
    measure -> commit

Generation 0's pool is real data only; what the generator of generation g draws enters the pool of
g+1. Images are labelled after their generation's classifier is trained: `loop.label_source =
previous` is the classifier before the pool that the images enter, so that generation 0's images
have one too.

A phase ends by writing gen_NNNN/<phase>.json; a phase with that file is not run again. record.json
comes last, by rename: the commit.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.analysis import verdicts
from selfloop_jax.data import dataset
from selfloop_jax.diffusion import solvers
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.loop import branch, context, measure_phase, phases, pool_rules
from selfloop_jax.report import page
from selfloop_jax.runtime import environment, log, multihost, parallel, store
from selfloop_jax.runtime.workdir import (
    BIT_RELEVANT,
    check_config,
    digest_record,
    generation_dir,
    lock,
    records,
    write_or_check_config,
    write_or_check_inputs,
    write_or_check_manifest,
)
from selfloop_jax.training import augment, classifier

PHASES: dict[str, Callable[[context.GenerationRun], context.Entry]] = {
    "annotator": phases.annotator_phase,
    "pool": phases.pool_phase,
    "diffusion": phases.diffusion_phase,
    "sample": phases.sample_phase,
    "classifier": phases.classifier_phase,
    "label": phases.label_phase,
    "generated_classifier": phases.generated_classifier_phase,
    "measure": measure_phase.measure_phase,
}


PREVIEWS_PER_CLASS = 8


OUT_OF_MEMORY_HINTS = {  # what to change where a phase runs out of memory
    "diffusion": "lower diffusion.batch or set diffusion.unet.remat = True",
    "sample": "lower sample.batch_per_device",
    "classifier": "lower classifier.batch",
    "generated_classifier": "lower classifier.batch",
    "annotator": "lower annotator.batch",
}


def run(
    config: configs.Config, workdir: Path, accept_manifest: bool, stop: Callable[[], bool]
) -> None:
    """Makes every generation that is not committed yet, then the report.

    `stop()` is asked between dispatches; when true, progress is saved and train.Stopped raised.
    """
    check(config)
    if (workdir / "config.json").exists():
        check_config(workdir, config.to_dict())
    stop = multihost.agree_on_stop(stop)
    study = context.RunContext(config, multihost.process_zero_first(lambda: load(config)), stop)
    now = environment.manifest(study.data.facts.get("stand_in"))
    multihost.check_same_on_all(
        {"config": config.to_dict(), "inputs": study.inputs, **{n: now[n] for n in BIT_RELEVANT}}
    )
    taking = config.loop.branch_from and not (workdir / "gen_0000" / "record.json").exists()
    if taking:
        branch.check(study, now, accept_manifest)
    with lock(workdir):
        exact = multihost.broadcast(
            store.leading and _prepare_workdir(study, workdir, now, taking, accept_manifest)
        )
        done = records(workdir, config.loop.generations)
        wanted = config.loop.generations
        if len(done) == wanted and (workdir / "report.html").exists() >= config.report.enabled:
            log.say(f"complete: {wanted} generations in {workdir}")
        else:
            _run_generations(study, workdir, multihost.broadcast(len(done)), exact)
    if config.report.enabled and store.leading:
        print(f"report: {workdir / 'report.html'}")


def _prepare_workdir(
    study: context.RunContext, workdir: Path, now: store.Json, taking: bool, accept_manifest: bool
) -> bool:
    """Writes or checks what a run has beside its generations; whether all of it is exact."""
    config = study.config
    write_or_check_inputs(workdir, study.inputs)
    if taking:
        branch.take_manifest(config, workdir)
    exact = write_or_check_manifest(workdir, now, accept_manifest)
    write_or_check_config(workdir, config.to_dict())
    if taking:
        branch.take(config, workdir)
    return exact


def check(config: configs.Config) -> None:
    """Raises UsageError where the config cannot be run on the devices at hand, whatever the data."""
    configs.check(config)
    configs.check_devices(config, parallel.device_count())
    configs.check_choice("study", config.study, ("self_consuming",))
    for owner in (dataset, pool_rules, solvers, classifier, augment, verdicts):
        owner.check(config)


def load(config: configs.Config, prepare: bool = True) -> dataset.Dataset:
    """The run's real images; UsageError where they, or the pools to be made of them, do not fit."""
    data = dataset.load(config.data, config.seed, prepare)
    address = (config.seed, "pool")
    sizes = len(data.reserve), config.sample.count
    pool_rules.check_data(config.pool, address, config.loop.generations, data.train, *sizes)
    if config.loop.control != "none":
        branch.check_control_of(config)
        growing = (
            pool_rules.source_generations(config.pool, 2).start == 0
        )  # then the last pool has the stand-ins of all others
        for g in range(config.loop.generations - 1 if growing else 1, config.loop.generations):
            context.control_images(config, data, pool_rules.source_generations(config.pool, g), {})
    needed = config.measure.split == "validation" or "annotator" in configs.classifiers(config)
    if needed and not len(data.validation):
        raise UsageError(
            f"data.validation_share = {config.data.validation_share}: allowed are shares that leave images: "
            "an annotator and measure.split = validation need them"
        )
    return data


def _run_generations(study: context.RunContext, workdir: Path, first: int, exact: bool) -> None:
    """Generations from `first` on, and the report."""
    config = study.config
    if first < config.loop.generations:
        write_previews(study, workdir)
    for number in range(first, config.loop.generations):
        run_generation(context.GenerationRun(study, number, workdir, workdir), exact)
    if config.report.enabled and store.leading:
        page.write([workdir])


def run_generation(gen: context.GenerationRun, exact: bool) -> store.Json:
    """Runs the phases that are not done yet and commits; the record."""
    compilations = environment.count_compilations()
    for name, phase in PHASES.items():
        path = gen.folder / f"{name}.json"
        if multihost.broadcast(not path.exists()):
            gen.parents = {}
            started = time.perf_counter()
            entry = _run_phase(phase, gen, name)
            seconds = round(time.perf_counter() - started, 3)
            store.write_json(path, entry | {"parents": gen.parents, "seconds": seconds})
            multihost.barrier()
        gen.entries[name] = store.read_json(path)
    record = _record(gen, exact, compilations())
    store.write_json(gen.folder / "record.json", record)
    if store.leading:
        shutil.rmtree(gen.folder / "samples.part", ignore_errors=True)
    multihost.barrier()
    accuracy, gap = (
        record["metrics"][m] for m in ("accuracy", "equal_opportunity_difference_mean")
    )
    log.say(
        f"generation {gen.number} done: accuracy {accuracy:.3f}, mean equal opportunity difference "
        f"{'undefined' if gap is None else format(gap, '.3f')}, {sum(record['seconds'].values()):.0f} s"
    )
    return record


def _run_phase(
    phase: Callable[[context.GenerationRun], context.Entry], gen: context.GenerationRun, name: str
) -> Any:
    """A phase's entry; RunError that names what to lower where the memory of a device does not suffice."""
    try:
        return phase(gen)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            if jax.process_count() == 1:
                raise  # no other process that could have failed: a fault of ours, told whole
            raise RunError(
                f"generation {gen.number}, {name}: {str(error).splitlines()[0]}"
            ) from error
        raise RunError(
            f"generation {gen.number}, {name}: out of memory: {OUT_OF_MEMORY_HINTS.get(name, 'lower measure.batch')}; "
            "a pool that is too large can stay on the host with data.placement = host"
        ) from error


def _record(gen: context.GenerationRun, exact: bool, compilations: int) -> store.Json:
    """All that is said of a generation, JSON ready."""
    config, entries = gen.study.config, gen.entries
    parents, digests = {}, {}
    for entry in entries.values():
        parents |= entry["parents"]
        digests |= entry["digests"]
    if gen.number:
        before = generation_dir(gen.home, gen.number - 1) / "record.json"
        parents[f"gen_{gen.number - 1:04d}/record.json"] = digest_record(store.read_json(before))
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
        "git": environment.git_state(),
    }


def write_previews(study: context.RunContext, workdir: Path) -> None:
    """A few real training images per class, for the report to set beside the drawn ones."""
    images = study.data.train
    rows = [
        np.flatnonzero(images.label == c)[:PREVIEWS_PER_CLASS]
        for c in range(len(study.data.classes))
    ]
    shown = images.take(np.concatenate(rows))
    arrays = {"pixels": shown.pixels, "label": shown.label, "group": shown.group}
    store.write_npz(workdir / "real.npz", arrays)
