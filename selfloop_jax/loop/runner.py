"""Runs the phases of a study: skips what is done, times, commits, and merges the record.

The runner knows no study. A phase ends by writing gen_NNNN/<phase>.json; a phase with that file is
not run again. record.json comes last, by rename: it commits the stage.
"""

import time
from collections.abc import Callable
from pathlib import Path

import jax

from selfloop_jax import __version__
from selfloop_jax.config import Config
from selfloop_jax.config.stored import check_config, write_or_check_config
from selfloop_jax.errors import RunError
from selfloop_jax.loop.phase import Phase, Result, merge
from selfloop_jax.loop.stage import Context, StageRun, Study
from selfloop_jax.runtime import environment, log, multihost, store, workdir
from selfloop_jax.runtime.tensorboard import TensorBoard
from selfloop_jax.runtime.workdir import generation_dir


def run(
    study: Study,
    config: Config,
    path: Path,
    accept_manifest: bool,
    stop: Callable[[], bool],
) -> None:
    """Computes every stage that is not committed yet in the workdir `path`, then its report.

    `stop()` is asked between dispatches; when it is true, progress is saved and Preempted raised.
    """
    # A mistake in the config must end the run before images are decoded.
    study.check(config)
    workdir.check_version(path, f"--workdir={path}")
    if (path / "config.json").exists():
        check_config(path, config.to_dict(), study.grows)
    context = study.open(config, multihost.agree(stop))
    manifest = environment.manifest(context.stand_in)
    bit_relevant = {name: manifest.get(name) for name in workdir.BIT_RELEVANT}
    # Processes that disagree would train on without an error, to bits that nobody can repeat.
    multihost.check_same_on_all(
        {"config": config.to_dict(), "inputs": context.inputs, **bit_relevant}
    )
    source = _branch_source(study, config, path)
    if source and study.check_branch:
        study.check_branch(context, manifest, accept_manifest)
    stages = study.stages(config)
    report = study.report if config.report.enabled else None
    with workdir.lock(path):
        # Process 0 alone writes; its answer counts for all.
        entry = multihost.broadcast(
            _prepare(study, context, path, manifest, source, accept_manifest)
            if store.leading
            else 0
        )
        # Process 0 counts for all: a stage that it sees committed is committed.
        committed = multihost.broadcast(len(workdir.records(path, stages)))
        reported = report is None or (path / "report.html").exists()
        if committed == stages and reported:
            log.say(f"already complete: {stages} generations in {path}")
            return _say_last(study, context, path)
        if committed < stages:
            study.begin(context, path)
            if config.log.tensorboard:
                context.tensorboard = TensorBoard(path)
        for number in range(committed, stages):
            run_stage(study, study.stage(context, number, path, path), entry)
        if report and store.leading:
            report(path)
    _say_last(study, context, path)


def _say_last(study: Study, context: Context, path: Path) -> None:
    if study.report and context.config.report.enabled and store.leading:
        print(f"report: {path / 'report.html'}", flush=True)
    if remark := study.remark(context):
        log.say(remark)


def _branch_source(study: Study, config: Config, path: Path) -> Path | None:
    """The workdir whose stage 0 is still to be copied into `path`; None where there is none."""
    committed = (generation_dir(path, 0) / "record.json").exists()
    return None if committed else study.branch_source(config)


def _prepare(
    study: Study,
    context: Context,
    path: Path,
    manifest: store.Json,
    source: Path | None,
    accept_manifest: bool,
) -> int:
    """Writes or checks config, manifest and inputs of a workdir.

    Returns the place in manifest.json of the entry that the run continues under. A run that
    branches starts with the manifest of its source, so that a change of it counts as a change
    within the run.
    """
    workdir.write_or_check_inputs(path, context.inputs)
    if source and not (path / "manifest.json").exists():
        store.write_json(path / "manifest.json", store.read_json(source / "manifest.json"))
    _say_other_code(path, manifest)
    entry = workdir.write_or_check_manifest(path, manifest, accept_manifest)
    write_or_check_config(path, context.config.to_dict(), study.grows)
    # Last of all: a workdir with a generation must have its config and manifest.
    if source:
        workdir.copy_generation(source, path, 0)
        log.say(f"generation 0: copied from {source}")
    return entry


def _say_other_code(path: Path, manifest: store.Json) -> None:
    """Says where a run goes on with another version of the code than it was made with so far."""
    entries = store.read_json(path / "manifest.json") if (path / "manifest.json").exists() else []
    changed = workdir.code_difference(entries[-1], manifest) if entries else None
    if changed:
        log.say(f"{path}: {changed}; what it computes from here on is marked as not exact")


def run_stage(study: Study, run: StageRun, entry: int) -> store.Json:
    """Runs the phases that are not done yet and commits; returns the record.

    entry: the place in manifest.json of the manifest that the stage is made under.
    """
    compilations = environment.count_compilations()
    if store.leading:
        run.folder.mkdir(exist_ok=True)
    for phase in study.phases:
        path = run.folder / f"{phase.name}.json"
        # Process 0 decides: a file system may show others a new file late.
        if multihost.broadcast(not path.exists()):
            # Each phase notes its own parents.
            run.inputs_read = {}
            started = time.perf_counter()
            result = _run_phase(phase, run)
            # Its file says that the phase is done, so it is written after all artifacts.
            store.write_json(path, _entry(result, run, time.perf_counter() - started))
            multihost.barrier()
        # Read back, so that a run and its resume see the same rounded values.
        run.results[phase.name] = store.read_json(path)
    record = _record(study, run, entry, compilations())
    store.write_json(run.folder / "record.json", record)
    multihost.barrier()
    _log_scalars(study, run, record)
    seconds = sum(record["seconds"].values())
    log.say(f"generation {run.number} done: {study.summary(record)}, {seconds:.0f} s")
    return record


def _log_scalars(study: Study, run: StageRun, record: store.Json) -> None:
    """Shows the numbers of a committed stage in TensorBoard, where that is switched on."""
    tensorboard = run.context.tensorboard
    if tensorboard:
        tensorboard.scalars("metrics", study.scalars(record), run.number)
        tensorboard.flush()


def _entry(result: Result, run: StageRun, seconds: float) -> store.Json:
    """What `<phase>.json` holds."""
    return {
        "digests": dict(result.digests),
        "record": dict(result.record),
        "images_per_second": {name: round(rate, 1) for name, rate in result.rates.items()},
        "parents": run.inputs_read,
        "seconds": round(seconds, 3),
    }


def _run_phase(phase: Phase, run: StageRun) -> Result:
    """Runs a phase; RunError that says what to set where a device runs out of memory."""
    where = f"generation {run.number}, {phase.name}"
    try:
        return phase.run(run)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise RunError(
                f"{where}: out of memory: {phase.memory_hint(run)}; a pool that is too large can "
                "stay on the host with data.placement = host"
            ) from error
        if jax.process_count() == 1:
            raise  # no other process can have failed: this is a bug, so its traceback is shown
        raise RunError(f"{where}: {str(error).splitlines()[0]}") from error


def _record(study: Study, run: StageRun, entry: int, compilations: int) -> store.Json:
    """The record of a stage: the merge of what its phases say, and how it was made."""
    results = run.results
    parents: dict[str, str] = {}
    rates: dict[str, float] = {}
    for result in results.values():
        parents |= result["parents"]
        rates |= result["images_per_second"]
    if run.number:
        # Each record pins the one before it, so the chain of stages cannot be exchanged.
        name = f"{generation_dir(run.source_workdir, run.number - 1).name}/record.json"
        parents[name] = workdir.digest_record(run.record_of(run.number - 1))
    return {
        "generation": run.number,
        "seed": run.context.config.seed,
        # A second entry means that some records were made under another manifest.
        "exact": entry == 0,
        "manifest": entry,
        **merge([study.facts(run), *(result["record"] for result in results.values())]),
        "digests": run.digests,
        "parents": dict(sorted(parents.items())),
        "seconds": {name: result["seconds"] for name, result in results.items()},
        "images_per_second": rates,
        "compilations": compilations,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": environment.git_state(),
        "version": __version__,
    }
