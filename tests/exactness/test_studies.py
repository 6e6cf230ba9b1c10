"""The shipped configs, shrunk, from files of the official formats to a report; own images."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import standin_hardimagenet
import standins
from runs import ROOT, call, call_run

TINY = [
    *("loop.generations=2", "measure.generated_only=first", "diffusion.unet.channels=8"),
    *("diffusion.steps=20", "diffusion.later.steps=8", "diffusion.batch=16", "sample.count=100"),
    *("sample.steps=3", "sample.batch_per_device=25", "classifier.width=8", "classifier.steps=60"),
    *(
        "classifier.later.steps=20",
        "classifier.batch=32",
        "annotator.width=8",
        "annotator.batch=32",
    ),
    *("annotator.steps=200", "annotator.warmup_steps=5", "classifier.warmup_steps=5"),
    *("annotator.learning_rate=5e-3", "classifier.learning_rate=5e-3", "measure.replicates=100"),
]


SMALL = [  # in place of the networks of the big studies
    *("data.train_size=0", "diffusion.unet.multipliers=(1,)", "diffusion.unet.blocks=1"),
    *("diffusion.unet.attention=()", "diffusion.unet.heads=1", "diffusion.unet.stem=4"),
    *("classifier.network=resnet", "classifier.stages=(1,)", "classifier.layout=imagenet"),
    *("annotator.network=resnet", "annotator.stages=(1,)", "annotator.layout=imagenet"),
]


def overrides(*fields):
    return [f"--config.{field}" for field in fields]


def record(workdir, generation):
    return json.loads((workdir / f"gen_{generation:04d}" / "record.json").read_text())


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A finished shrunk run of cifar20 on a stand-in: (command line, workdir)."""
    folder = tmp_path_factory.mktemp("cifar")
    standins.cifar100_archive(folder / "archives", 3000, 500)
    table = standins.checksums(folder / "archives")
    workdir = folder / "run"
    where = (
        f"data.tfds.dir={folder / 'tfds'}",
        f"data.archive_dir={folder / 'archives'}",
        f"data.tfds.checksums={table}",
    )
    command = [
        "--config=configs/cifar20.py",
        *overrides(*TINY, *SMALL, *where),
        "--config.measure.batch=100",
    ]
    command.append(f"--workdir={workdir}")
    done = call(*command)
    assert done.returncode == 0, done.stderr
    return command, workdir


def test_cifar20_knows_no_group_but_those_of_the_image_s_class(cifar):
    _, workdir = cifar
    for generation in (0, 1):
        made = record(workdir, generation)
        assert made["data"]["nested"]
        members = made["data"]["groups_of_class"]
        assert [len(row) for row in members] == [5] * 20
        counts = np.array(made["tables"]["generated_counts"])
        inside = np.zeros_like(counts, bool)
        for c, row in enumerate(members):
            inside[c, row] = True
        assert counts.sum() == 100
        assert counts[~inside].sum() == 0
        assert made["metrics"]["equalized_odds_difference"]["value"] is None
        assert made["metrics"]["equal_opportunity_difference_mean"]["value"] is not None


def test_the_bias_of_cifar20_is_in_its_training_images(cifar):
    made = record(cifar[1], 0)
    joint, members = np.array(made["pool"]["counts"]), made["data"]["groups_of_class"]
    shares = np.array([joint[c, row] / joint[c].sum() for c, row in enumerate(members)])
    assert (
        abs(shares - [0.6, 0.1, 0.1, 0.1, 0.1]).max() < 0.06
    )  # some ten images in a small subgroup
    assert made["data"]["aligned_group"] == [row[0] for row in members]
    assert made["data"]["sizes"]["train"] < made["data"]["before_subsampling"]["train"] == 2100


def test_the_annotator_is_frozen_measured_and_named_in_every_record(cifar):
    _, workdir = cifar
    first, second = record(workdir, 0), record(workdir, 1)
    tables = np.array(first["annotator"]["confusion"])
    assert tables.shape == (20, 5, 5)
    assert tables.sum() == first["data"]["sizes"]["validation"] == 300
    assert np.einsum("ckk->", tables) / tables.sum() > 0.35  # chance is 0.2
    assert second["parents"]["gen_0000/annotator"] == first["digests"]["annotator"]
    assert "annotator" not in second["digests"]


def test_stand_in_data_are_named_wherever_results_are_shown(cifar):
    _, workdir = cifar
    assert json.loads((workdir / "manifest.json").read_text())[0]["stand_in"] == "checksums.tsv"
    assert record(workdir, 1)["data"]["stand_in"] == "checksums.tsv"
    html = (workdir / "report.html").read_text()
    assert re.search(r"<title>[^<]*STAND-IN for cifar20", html)
    assert "these are not the images of cifar20" in html


def test_a_second_start_reads_what_is_prepared_and_finds_the_run_complete(cifar):
    command, workdir = cifar
    before = {path: path.read_bytes() for path in workdir.rglob("*.npz")}
    again = call(*command)
    assert again.returncode == 0, again.stderr
    assert "complete: 2 generations" in again.stdout + again.stderr
    assert "preparing" not in again.stdout + again.stderr
    assert {path: path.read_bytes() for path in workdir.rglob("*.npz")} == before


def test_a_run_resumes_only_with_the_images_it_began_with(cifar, tmp_path):
    command, workdir = cifar
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    inputs = json.loads((copy / "inputs.json").read_text())
    inputs["data"]["digest"] = "0" * 64
    (copy / "inputs.json").write_text(json.dumps(inputs))
    longer = call(*command[:-1], "--config.loop.generations=3", f"--workdir={copy}")
    assert longer.returncode == 1
    assert (
        f"{copy}: the real images are no longer what the run began with"
        in longer.stderr.splitlines()[-1]
    )


def test_a_generation_with_an_annotator_replays_to_the_same_bits(cifar):
    _, workdir = cifar
    again = call(f"--workdir={workdir}", "--replay=1")
    assert again.returncode == 0, again.stdout + again.stderr


def test_hardimagenet_measures_what_its_classifier_rests_on(tmp_path):
    places = standin_hardimagenet.make(tmp_path / "images", "own", per_class=30, val_per_class=4)
    where = [f"data.hardimagenet.{name}={place}" for name, place in places.items()]
    workdir = tmp_path / "run"
    done = call(
        "--config=configs/hardimagenet.py",
        *overrides(
            *TINY,
            *SMALL,
            *where,
            f"data.cache_dir={tmp_path / 'cache'}",
            "data.hardimagenet.holdout=3",
        ),
        *overrides("measure.batch=60", "annotator.steps=40", "sample.count=60"),
        f"--workdir={workdir}",
    )
    assert done.returncode == 0, done.stderr
    for generation in (0, 1):
        made = record(workdir, generation)
        assert made["data"]["sizes"]["test"] == 15 * 2 * 3
        foreground = made["foreground"]
        assert foreground["count"] == made["data"]["sizes"]["probe"] == 60
        assert set(foreground["ablations"]) == {"none", "object", "box", "tile"}
        assert all(len(a["per_class"]) == 15 for a in foreground["ablations"].values())
        assert [noise["sigma"] for noise in foreground["noise"]] == [
            0.125,
            0.25,
            0.375,
            0.5,
            0.625,
            0.75,
        ]
        assert all(-1 <= noise["rfs"] <= 1 for noise in foreground["noise"])
    assert "STAND-IN for hardimagenet" in (workdir / "report.html").read_text()
    assert {path.name for path in (workdir / "report").iterdir()} >= {
        "curves_ablations.png",
        "sensitivity.png",
    }


def test_the_annotator_tells_colours_as_the_oracle_does(tmp_path):
    """Trained on biased digits, where a digit's shape says its colour nine times in ten."""
    done = call_run(
        tmp_path / "run",
        *overrides("loop.generations=1", "loop.group_source=annotator"),
        *overrides("data.bias.kind=rho", "data.bias.rho=0.9"),
        *overrides("annotator.width=4", "annotator.stages=(1,)", "annotator.batch=32"),
        *overrides("annotator.steps=150", "annotator.warmup_steps=5"),
        *overrides("annotator.learning_rate=5e-3"),
    )
    assert done.returncode == 0, done.stderr
    made = record(tmp_path / "run", 0)
    tables = np.array(made["annotator"]["confusion"])
    assert tables.shape == (10, 2, 2)
    assert np.einsum("ckk->", tables) / tables.sum() > 0.9
    assert "annotator_agreement" in made["metrics"]


def test_the_walk_for_own_images_goes_as_it_is_written(tmp_path):
    text = (ROOT / "docs" / "your_data.md").read_text()
    blocks = re.findall(r"^```\n(python .*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for name in ("selfloop_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    # Networks of other tests, whose compiled programs are kept.
    sizes = ("diffusion.unet.multipliers=(1,)", "classifier.stages=(1,)", "annotator.stages=(1,)")
    given = overrides(*TINY, *sizes, "measure.batch=100")
    shrunk = " ".join(f"'{override}'" for override in given)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in (blocks[0], f"{blocks[1].strip()} {shrunk} --config.data.cache_dir=cache"):
        done = subprocess.run(
            ["bash", "-euc", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    made = record(tmp_path / "runs" / "my_images", 1)
    assert made["data"]["groups"] == ["red", "green"]
    assert made["data"]["images"]["train"] == 1400
    assert (tmp_path / "runs" / "my_images" / "report.html").is_file()
