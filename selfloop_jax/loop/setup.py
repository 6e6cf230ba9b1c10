"""How a run of the self-consuming loop starts: checks, real images, and what its records say."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.analysis import verdicts
from selfloop_jax.config import Config
from selfloop_jax.data import controls, dataset, pool_rules, sources
from selfloop_jax.data.images import Images
from selfloop_jax.diffusion import processes, solvers
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import control_images
from selfloop_jax.loop.context import GenerationRun, RunContext, trains_annotator
from selfloop_jax.measure import features
from selfloop_jax.runtime import environment, log, multihost, parallel, store, tensorboard
from selfloop_jax.sampling import requests
from selfloop_jax.training import augment, classifier

PREVIEWS_PER_CLASS = 8


def check(config: Config) -> None:
    """Raises UsageError where the config cannot run on these devices, whatever the data."""
    configs.check_devices(config, parallel.device_count())
    tensorboard.check(config.log.tensorboard)
    # Names that come from a table are checked where the table is.
    training = (controls, processes, solvers, classifier, augment)
    for owner in (dataset, pool_rules, *training, features, verdicts):
        owner.check(config)


def check_given(config: Config, given: Collection[str]) -> None:
    """Raises UsageError for fields that a new run would ignore; `given`: those of the flags."""
    sources.check_given(config.data)
    classifier.check_given(config, given)


def open_run(config: Config, stop: Callable[[], bool]) -> RunContext:
    """Reads the real images and builds the networks; process 0 decodes for all others."""
    data = multihost.process_zero_first(lambda: load(config))
    context = RunContext(config, data, stop)
    steps = context.networks.trainers["diffusion"].steps_per_dispatch
    if environment.device_info()["platform"] != "cpu" or steps > 1:
        log.say(f"training steps in one program: {steps} (parallel.steps_per_dispatch)")
    return context


def load(config: Config, prepare: bool = True) -> dataset.Dataset:
    """The real images; UsageError where they, or the pools to be made of them, do not fit.

    Without `prepare` images that still have to be downloaded or decoded raise `Missing`.
    """
    data = dataset.load(config.data, config.seed, prepare)
    # Pools of all generations are checked before anything is trained.
    pool_rules.check_data(
        config.pool,
        (config.seed, "pool"),
        config.loop.generations,
        data.train,
        len(data.reserve),
        config.sample.count,
    )
    if config.loop.control == "none":
        requests.check(config, data)
    # Too few held-out images for a control must show before anything is trained.
    if config.loop.control != "none":
        control_images.check(config, data)
    annotates = trains_annotator(config, len(data.groups), generation=0)
    needs_validation = annotates or config.measure.split == "validation"
    if needs_validation and not len(data.validation):
        raise UsageError(
            f"data.validation_share = {config.data.validation_share}: must leave images: an "
            "annotator and measure.split = validation need them"
        )
    return data


def generation(
    context: RunContext, number: int, workdir: Path, source_workdir: Path
) -> GenerationRun:
    """Generation `number`, to be computed."""
    return GenerationRun(context, number, workdir, source_workdir)


def write_previews(context: RunContext, workdir: Path) -> None:
    """Writes real.npz, for the report: a few real training images per class, and all ids.

    The ids say how many real images runs of other seeds share with this one.
    """
    images = context.data.train
    rows = []
    for c in range(len(context.data.classes)):
        rows.append(np.flatnonzero(images.label == c)[:PREVIEWS_PER_CLASS])
    shown = images.take(np.concatenate(rows))
    arrays = {
        "pixels": shown.pixels,
        "label": shown.label,
        "group": shown.group,
        "train_id": images.id,
        "test_id": _source_id(context.data.test),
    }
    store.write_npz(workdir / "real.npz", arrays)


def _source_id(images: Images) -> np.ndarray:
    """uint32: ids of the underlying images, each once, however many colours it is shown in."""
    return np.unique(images.id if images.source_id is None else images.source_id)


def facts(run: GenerationRun) -> store.Json:
    """What a record says besides its phases: the real images and the weights started from."""
    inputs = run.context.inputs
    found = {"data": inputs["data"]}
    if inputs["initial_weights"]:
        found["initial_weights"] = inputs["initial_weights"]
    return found


def scalars(record: store.Json) -> dict[str, float | None]:
    """The values of all metrics of a generation, None where undefined."""
    return {name: number["value"] for name, number in record["metrics"].items()}


def report(workdir: Path) -> None:
    """Writes report.html and its figures."""
    # matplotlib is imported only where a page is written.
    from selfloop_jax import report as pages

    pages.write([workdir])


def remark(context: RunContext) -> str:
    """Says once more, at the end, that there was no gap to measure."""
    if len(context.data.groups) > 1:
        return ""
    return "all images were of one group: this run says nothing of gaps between groups"


def summary(record: store.Json) -> str:
    """Accuracy and mean equal opportunity difference of a generation, for the log."""
    metrics = record["metrics"]
    accuracy = metrics["accuracy"]["value"]
    gap = metrics["equal_opportunity_difference_mean"]["value"]
    shown = "undefined" if gap is None else f"{gap:.3f}"
    return f"accuracy {accuracy:.3f}, mean equal opportunity difference {shown}"
