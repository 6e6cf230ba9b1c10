"""What the real images must have before a run starts."""

import dataclasses

import numpy as np
import pytest

from selfloop_jax.config import (
    BiasConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    LoopConfig,
    MeasureConfig,
    SampleConfig,
)
from selfloop_jax.data.images import Images
from selfloop_jax.data.sources import SOURCES, Source, SourceEntry, four_splits
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import setup

ANNOTATED = LoopConfig(group_source="annotator")


def blank(section, prepare):
    """Black images of two classes, and of two groups where the source is named so."""
    n = 40
    ids = np.arange(n, dtype=np.uint32)
    images = Images(
        pixels=np.zeros((n, 8, 8, 3), np.uint8),
        label=(ids % 2).astype(np.int32),
        group=(ids // 2 % 2).astype(np.int32),
        origin=np.full(n, -1, np.int32),
        id=ids,
    )
    splits = four_splits(section, train=images.take(slice(20)), test=images.take(slice(20, n)))
    groups = ("one", "other") if section.source == "two_groups" else ()
    return Source(**splits, classes=("a", "b"), groups=groups)


@pytest.mark.parametrize(
    ("loop", "source", "split", "needed"),
    [
        (ANNOTATED, "two_groups", "test", True),
        (ANNOTATED, "one_group", "test", False),
        (dataclasses.replace(ANNOTATED, control="no_synthetic"), "two_groups", "test", False),
        (
            dataclasses.replace(ANNOTATED, control="no_synthetic", branch_from="x"),
            "two_groups",
            "test",
            True,
        ),
        (LoopConfig(), "two_groups", "test", False),
        (LoopConfig(), "two_groups", "validation", True),
    ],
)
def test_validation_images_are_needed_where_something_reads_them(
    loop, source, split, needed, monkeypatch
):
    monkeypatch.setitem(SOURCES, source, SourceEntry(blank))
    data = DataConfig(
        source=source, validation_share=0.0, colorize="none", bias=BiasConfig("natural")
    )
    config = Config(data=data, loop=loop, measure=MeasureConfig(split=split))
    if not needed:
        assert len(setup.load(config).validation) == 0
        return
    with pytest.raises(UsageError, match=r"^data\.validation_share = 0\.0: must leave images"):
        setup.load(config)


@pytest.mark.parametrize(
    ("classes", "groups", "request_", "condition_on", "fault"),
    [
        (("a", "b"), ("one", "other"), "uniform", "label_group", ""),
        (("a", "b", "c"), ("one", "other"), "uniform", "label", "class 'c'"),
        (("a", "b"), ("one", "other", "blue"), "uniform", "label_group", "group 'blue'"),
        (("a", "b"), ("one", "other", "blue"), "uniform", "label", ""),
        (("a", "b", "c"), ("one", "other", "blue"), "real", "label_group", ""),
    ],
)
def test_what_no_training_image_shows_is_not_requested(
    classes, groups, request_, condition_on, fault, monkeypatch
):
    def load(section, prepare):
        source = dataclasses.replace(section, source="two_groups")
        return dataclasses.replace(blank(source, prepare), classes=classes, groups=groups)

    monkeypatch.setitem(SOURCES, "larger", SourceEntry(load))
    config = Config(
        data=DataConfig(source="larger", colorize="none", bias=BiasConfig("natural")),
        diffusion=DiffusionConfig(condition_on=condition_on),
        sample=SampleConfig(request=request_),
    )
    if not fault:
        setup.load(config)
        return
    with pytest.raises(UsageError) as caught:
        setup.load(config)
    assert str(caught.value) == (
        f"sample.request = uniform: must be real | pool, because {fault} has no training image"
    )
    # A control trains no generator, and so requests nothing.
    setup.load(dataclasses.replace(config, loop=LoopConfig(control="no_synthetic")))
