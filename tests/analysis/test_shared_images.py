"""Which real images the seeds of a study share."""

import html

import numpy as np
import pytest
from workdirs import make_workdir

from selfloop_jax.analysis.runs import read_runs
from selfloop_jax.analysis.shared_images import shares
from selfloop_jax.report import page, text


def test_shares_are_means_over_pairs_of_seeds(tmp_path):
    """Of ids 0 to 9, 5 to 14 and 10 to 19, two pairs share half and one shares nothing."""
    paths = [make_workdir(tmp_path / str(seed), 1, seed=seed) for seed in range(3)]
    paths.append(make_workdir(tmp_path / "control", 1, seed=0, control="no_synthetic"))
    assert shares(read_runs(paths)) == {"train": pytest.approx(1 / 3), "test": 1}


def test_runs_of_one_seed_or_without_ids_say_nothing(tmp_path):
    paths = [make_workdir(tmp_path / str(seed), 1, seed=seed) for seed in range(2)]
    assert shares(read_runs(paths[:1])) == {}
    arrays = dict(np.load(paths[1] / "real.npz"))
    del arrays["train_id"]
    np.savez(paths[1] / "real.npz", **arrays)
    assert shares(read_runs(paths)) == {}


def test_the_report_says_what_seeds_share(tmp_path):
    paths = [make_workdir(tmp_path / str(seed), 1, seed=seed) for seed in range(3)]
    (sentence,) = text.shared_images(read_runs(paths))
    assert "share 33 % of their training images and 100 % of their test images" in sentence
    assert sentence in html.unescape(page.write(paths, tmp_path / "page.html").read_text()).replace(
        "\N{NO-BREAK SPACE}", " "
    )
