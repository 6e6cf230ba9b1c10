"""Which real images the seeds of a study share."""

import html

import numpy as np
import pytest
from workdirs import edit, make_workdir

from selfloop_jax.analysis.runs import read_runs
from selfloop_jax.analysis.shared_images import shares
from selfloop_jax.report import page, text


def test_shares_are_means_over_pairs_of_seeds(tmp_path):
    """Of ids 0 to 9, 5 to 14 and 10 to 19, two pairs share half and one shares nothing."""
    paths = [make_workdir(tmp_path / str(seed), 1, seed=seed) for seed in range(3)]
    paths.append(make_workdir(tmp_path / "control", 1, seed=0, control="no_synthetic"))
    third = pytest.approx(1 / 3)
    assert shares(read_runs(paths)) == {"train": (third, third), "test": (1, 1)}


def test_each_initial_bias_has_a_share_of_its_own(tmp_path):
    """Of one bias seeds 0 and 1 share half of their images, of the other 0 and 2 none."""
    paths = [make_workdir(tmp_path / str(seed), 1, seed=seed) for seed in (0, 1)]
    for seed in (0, 2):
        path = make_workdir(tmp_path / f"other{seed}", 1, seed=seed)
        edit(path / "config.json", lambda config: config["data"].update(bias={"kind": "natural"}))
        paths.append(path)
    runs = read_runs(paths)
    assert shares(runs)["train"] == (0, 0.5)
    (sentence,) = text.shared_images(runs)
    assert "share 0 to 50 % (by initial bias) of their training images and 100 % of" in sentence


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
