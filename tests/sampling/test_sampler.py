"""Tests sampling in chunks with a sampler that paints each image's id."""

import numpy as np
import pytest

from selfloop_jax.runtime import log
from selfloop_jax.sampling import sampler
from selfloop_jax.sampling.parts import Parts
from selfloop_jax.training.fit import Preempted

COUNT = 10


def paint(params, key, ids, label, group):
    """Pixels of an image: its id, its label and its group."""
    columns = np.stack([ids, label, group], axis=-1).astype(np.uint8)
    return columns[:, None, None, :]


def job(folder, chunk, stop_after=None):
    """A job of COUNT images that is stopped after so many chunks."""
    chunks = iter(range(COUNT))
    return sampler.Job(
        sampler=paint,
        params=None,
        label=np.arange(COUNT, dtype=np.int32) % 3,
        group=np.arange(COUNT, dtype=np.int32) % 2,
        chunk=chunk,
        key_path=(0, "noise"),
        parts=Parts(folder / "samples.part"),
        progress=log.Progress(log.Metrics(folder / "metrics.jsonl"), 0, "sample", 1),
        stop=lambda: next(chunks) + 1 == stop_after,
    )


def expected():
    ids = np.arange(COUNT)
    return np.stack([ids, ids % 3, ids % 2], axis=-1)[:, None, None, :]


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 16])
def test_every_image_comes_once_in_the_order_of_ids_for_any_chunk(tmp_path, chunk):
    (sampled,) = sampler.sample([job(tmp_path, chunk)])
    np.testing.assert_array_equal(sampled.pixels, expected())


@pytest.mark.parametrize(("before", "after"), [(3, 3), (6, 3), (3, 6), (4, 5), (2, 16)])
def test_a_stopped_job_resumes_with_chunks_of_any_size(tmp_path, before, after):
    """As a resume on another number of devices does."""
    with pytest.raises(Preempted, match=f"image {before}$"):
        sampler.sample([job(tmp_path, before, stop_after=1)])
    (sampled,) = sampler.sample([job(tmp_path, after)])
    np.testing.assert_array_equal(sampled.pixels, expected())


def test_finished_chunks_are_kept(tmp_path):
    with pytest.raises(Preempted):
        sampler.sample([job(tmp_path, 4, stop_after=2)])
    calls = []
    resumed = job(tmp_path, 4)
    counting = {**vars(resumed), "sampler": lambda *given: calls.append(given) or paint(*given)}
    (sampled,) = sampler.sample([sampler.Job(**counting)])
    assert len(calls) == 1
    np.testing.assert_array_equal(sampled.pixels, expected())
