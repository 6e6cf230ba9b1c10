"""One stage of a study under way, and the study as the runner sees it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from selfloop_jax.config import Config
from selfloop_jax.errors import RunError
from selfloop_jax.loop.phase import Phase
from selfloop_jax.runtime import store
from selfloop_jax.runtime.tensorboard import TensorBoard
from selfloop_jax.runtime.workdir import generation_dir


class Context(Protocol):
    """What the runner needs of the context that all stages of a run share."""

    config: Config
    inputs: store.Json  # digests of images and weights that a run must continue with
    tensorboard: TensorBoard | None

    @property
    def stand_in(self) -> str | None:
        """The note that the images are not the real ones; None if they are."""


@dataclass
class StageRun:
    """A stage being computed: where it writes, and what it has read and made so far.

    Of the self-consuming loop a stage is a generation. A replay writes to a scratch workdir and
    reads earlier stages from source_workdir; otherwise both are the same.
    """

    context: Context
    number: int
    workdir: Path
    source_workdir: Path
    results: dict[str, store.Json] = field(default_factory=dict)  # by phase, those that are done
    inputs_read: dict[str, str] = field(default_factory=dict)  # digests that this phase read

    @property
    def folder(self) -> Path:
        """Where this stage's artifacts go."""
        return generation_dir(self.workdir, self.number)

    @property
    def digests(self) -> dict[str, str]:
        """Digests of what the finished phases of this stage made."""
        found: dict[str, str] = {}
        for result in self.results.values():
            found |= result["digests"]
        return found

    def record_of(self, stage: int) -> store.Json:
        """The committed record of an earlier stage."""
        return store.read_json(generation_dir(self.source_workdir, stage) / "record.json")

    def digest(self, stage: int, name: str) -> str:
        """The recorded digest of an artifact of this or an earlier stage.

        A digest of an earlier stage is noted as an input of the phase that is running.
        """
        # Its record is not written yet, but its phases have their results.
        if stage == self.number:
            return self.digests[name]
        digest = self.record_of(stage).get("digests", {}).get(name)
        folder = generation_dir(self.source_workdir, stage)
        if digest is None:
            raise RunError(f"{folder / 'record.json'}: damaged: it has no digest of {name}")
        # The record lists what it was made from.
        return self.inputs_read.setdefault(f"{folder.name}/{name}", digest)

    def workdir_of(self, stage: int) -> Path:
        """The workdir that holds the artifacts of this or an earlier stage."""
        return self.workdir if stage == self.number else self.source_workdir


def no_remark(context: Any) -> str:
    """Of a study that has nothing to say last."""
    return ""


def no_branch(config: Config) -> Path | None:
    """None: the study starts from no other run."""
    return None


def accept_all(config: Config, given: Collection[str]) -> None:
    """Refuses no field."""


def no_begin(context: Any, workdir: Path) -> None:
    """Writes nothing: the run has its stages alone."""


def no_facts(run: Any) -> store.Json:
    """Empty: all entries of the record come from phases."""
    return {}


def no_scalars(record: store.Json) -> dict[str, float | None]:
    """Empty: TensorBoard shows what the phases log, and nothing of a record."""
    return {}


@dataclass(frozen=True)
class Study:
    """A study: its phases, and the few things about it that the runner has to ask.

    check(config): UsageError where the config cannot be run, before anything is read; `main` has
        checked what `config.check` does.
    check_given(config, given): UsageError where a new run would ignore a field; `given` are the
        dotted names of those on the command line. A run that has begun keeps its config.
    open(config, stop): reads the data and builds the networks; UsageError where they do not fit.
    stages(config): how many stages a run has.
    stage(context, number, workdir, source_workdir): the stage to be computed.
    summary(record): a finished stage in a few words.
    dry_run(config): sizes and costs, as lines; trains and decodes nothing.
    begin(context, workdir): writes what a run has besides its stages.
    facts(run): the record's entries that belong to no phase.
    scalars(record): the numbers of a finished stage by name, None where undefined; TensorBoard
        shows them, and a replay on another manifest compares them.
    report(workdir): writes report.html of a finished run; None: the study has no report.
    remark(context): a line that a user must not miss, which the run says last; "" for none.
    branch_source(config): the workdir whose stage 0 this run starts from, or None.
    check_branch(context, manifest, accept_manifest): raises where it cannot start from there.
    grows: the fields that a resume may raise, because they make the run longer and no more.

    Where a function takes a context or a stage, it is the one that `open` or `stage` of the same
    study has returned.
    """

    name: str
    phases: tuple[Phase, ...]
    check: Callable[[Config], None]
    open: Callable[[Config, Callable[[], bool]], Context]
    stages: Callable[[Config], int]
    stage: Callable[[Any, int, Path, Path], StageRun]
    summary: Callable[[store.Json], str]
    dry_run: Callable[[Config], list[str]]
    check_given: Callable[[Config, Collection[str]], None] = accept_all
    begin: Callable[[Any, Path], None] = no_begin
    facts: Callable[[Any], store.Json] = no_facts
    scalars: Callable[[store.Json], Mapping[str, float | None]] = no_scalars
    report: Callable[[Path], object] | None = None
    remark: Callable[[Any], str] = no_remark
    branch_source: Callable[[Config], Path | None] = no_branch
    check_branch: Callable[[Any, store.Json, bool], None] | None = None
    grows: tuple[str, ...] = ()
