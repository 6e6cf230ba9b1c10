"""The programs that work on a finished run: sample, export; and the console script."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import runs
from PIL import Image
from workdirs import edit, make_workdir

from selfloop_jax import cli, config, export
from selfloop_jax.data.sources import folder
from selfloop_jax.diffusion import solvers
from selfloop_jax.runtime import environment
from selfloop_jax.sampling import __main__ as sampling


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished shrunk quickstart of two generations."""
    path = tmp_path_factory.mktemp("verbs") / "run"
    done = runs.run(path, "--config.loop.generations=2")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(autouse=True)
def same_backend(monkeypatch):
    """The programs run in this process, whose backend has started."""
    monkeypatch.setattr(environment, "configure", lambda **_: None)


def said(capsys):
    """The one JSON object on standard output."""
    return json.loads(capsys.readouterr().out)


def test_sample_writes_images_grid_and_arrays(workdir, tmp_path, capsys):
    out = tmp_path / "images"
    assert sampling.program([str(workdir), f"--out={out}", "--count=12", "--json"]) == 0
    found = said(capsys)
    assert (found["count"], found["generation"]) == (12, 1)
    arrays = np.load(out / "samples.npz")
    assert arrays["pixels"].shape == (12, 8, 8, 3)
    assert arrays["label"].tolist() == [*range(10), 0, 1]
    files = sorted((out / "images").iterdir())
    assert len(files) == 12
    with Image.open(files[3]) as image:
        np.testing.assert_array_equal(np.asarray(image), arrays["pixels"][3])
    with Image.open(out / "grid.png") as image:
        assert image.size[0] > 60


def test_sample_gives_the_images_of_the_run_for_its_own_labels(workdir, tmp_path):
    run = np.load(workdir / "gen_0001" / "samples.npz")
    label = int(run["requested_label"][0])
    arguments = [str(workdir), f"--out={tmp_path / 'a'}", "--count=4", f"--label={label}"]
    assert sampling.program(arguments) == 0
    own = np.load(tmp_path / "a" / "samples.npz")["pixels"]
    same = run["requested_label"][:4] == label
    np.testing.assert_array_equal(own[same], run["pixels"][:4][same])


def test_another_seed_gives_other_images(workdir, tmp_path):
    for seed in (1, 2):
        arguments = [str(workdir), f"--out={tmp_path / str(seed)}", "--count=4", f"--seed={seed}"]
        assert sampling.program(arguments) == 0
    one, two = (np.load(tmp_path / str(s) / "samples.npz")["pixels"] for s in (1, 2))
    assert (one != two).any()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--generation=7", "--generation=7: must be one of 0 | 1"),
        ("--label=ten", "--label=ten: must be one of 0 | 1"),
        ("--count=0", "--count=0: must be > 0"),
        ("--steps=0", "sample.steps = 0"),
        ("--group=red", "--group: must be left out; the generator of this run takes only labels"),
        ("--sigma=3", "unrecognized arguments: --sigma=3"),
    ],
)
def test_sample_refuses_in_one_line(workdir, tmp_path, capsys, flag, message):
    assert sampling.program([str(workdir), f"--out={tmp_path / 'x'}", flag]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("program", [sampling.program, export.program])
def test_a_folder_without_a_run_is_refused(program, tmp_path, capsys):
    assert program([str(tmp_path), f"--out={tmp_path / 'x'}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("program", [sampling.program, export.program])
def test_an_occupied_folder_is_refused(program, workdir, tmp_path, capsys):
    (tmp_path / "theirs.txt").write_text("mine")
    assert program([str(workdir), f"--out={tmp_path}"]) == 2
    assert f"--out={tmp_path}: must be a new or empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("program", [sampling.program, export.program])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(
    program, workdir, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.delattr(sampling, "_generate")
    monkeypatch.delattr(export, "_write_split")
    assert program([str(workdir), f"--out={tmp_path / 'file' / 'x'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: --out={tmp_path / 'file' / 'x'}: must be writable: Not a directory"]


def test_an_exported_generation_is_read_back_by_the_folder_source(workdir, tmp_path, capsys):
    out = tmp_path / "images"
    assert export.program([str(workdir), f"--out={out}", "--generation=0", "--json"]) == 0
    sizes = said(capsys)["images"]
    fields = config.default()
    fields.data.source = "folder"
    fields.data.folder.dir = str(out)
    fields.data.colorize = "none"
    fields.data.cache_dir = str(tmp_path / "cache")
    source = folder.load(config.typed(fields).data, prepare=True)
    # The source sets validation and reserve aside from the exported train/.
    training = [source.train, source.validation, source.reserve]
    assert (sum(map(len, training)), len(source.test)) == (sizes["train"], sizes["test"])
    run = np.load(workdir / "gen_0000" / "samples.npz")
    splits = [*training, source.test]
    every = np.concatenate([split.pixels for split in splits])
    assert sorted(map(bytes, every)) == sorted(map(bytes, run["pixels"]))
    counts = sum(split.counts(10, 2) for split in splits)
    known = run["group"] >= 0
    expected = np.zeros((10, 2), int)
    np.add.at(expected, (run["label"][known], run["group"][known]), 1)
    np.testing.assert_array_equal(counts, expected)


def test_export_without_a_test_share_writes_one_split(workdir, tmp_path, capsys):
    out = tmp_path / "images"
    assert export.program([str(workdir), f"--out={out}", "--test_share=0", "--json"]) == 0
    assert said(capsys)["images"] == {"train": 200}
    assert not (out / "test").exists()


def test_the_console_script_names_its_programs(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"selfloop {name}" in shown for name in cli.PROGRAMS)
    assert cli.main(["smaple"]) == 2
    assert "smaple: must be one of run | sweep" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.PROGRAMS)
def test_every_program_has_a_manual(name):
    command = [sys.executable, "-m", "selfloop_jax.cli", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5


def test_importing_the_package_imports_no_jax():
    program = "import selfloop_jax, sys; selfloop_jax.TestSet; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=runs.ROOT
    )
    assert done.stdout.strip() == "False", done.stderr


def test_tensorboard_has_losses_metrics_and_images(tmp_path):
    path = tmp_path / "run"
    done = runs.run(path, "--config.loop.generations=1", "--config.log.tensorboard=True")
    assert done.returncode == 0, done.stderr
    (events,) = (path / "tensorboard").iterdir()
    written = events.read_bytes()
    for tag in (b"generation_0/diffusion/loss", b"metrics/worst_group_accuracy", b"samples"):
        assert tag in written


@pytest.fixture
def record_only(tmp_path, monkeypatch):
    """A run of three classes, of which the records are there; black images are generated."""

    def make(condition_on="label_group", **options):
        path = make_workdir(tmp_path / "run", **options)
        edit(path / "config.json", lambda c: c.update(diffusion={"condition_on": condition_on}))
        edit(path / "manifest.json", lambda entries: entries[0].update(selfloop_jax="0.2.0"))
        for generation in path.glob("gen_*"):
            (generation / "diffusion").mkdir()
            result = {"digests": {"diffusion": "ab"}}
            (generation / "diffusion.json").write_text(json.dumps(result))
        return path

    def black(*arguments):
        return np.zeros((len(arguments[-1]), 8, 8, 3), np.uint8)

    monkeypatch.setattr(sampling, "_generate", black)
    return make


def sampled(workdir, tmp_path, *flags):
    """Label and group of the images that `sample` wrote."""
    out = tmp_path / "out"
    assert sampling.program([str(workdir), f"--out={out}", "--count=7", *flags]) == 0
    arrays = np.load(out / "samples.npz")
    return arrays["label"].tolist(), arrays["group"].tolist()


def test_a_generator_of_groups_is_asked_for_those_of_each_class_in_turn(record_only, tmp_path):
    label, group = sampled(record_only(), tmp_path)
    assert label == [0, 1, 2, 0, 1, 2, 0]
    assert group == [0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("flags", "label", "group"),
    [
        ([], [0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 2, 0]),
        (["--label=one"], [1] * 7, [1, 4, 1, 4, 1, 4, 1]),
        (["--group=3"], [0] * 7, [3] * 7),
    ],
)
def test_nested_groups_are_those_of_the_class(record_only, tmp_path, flags, label, group):
    workdir = record_only(groups=5, nested=True)
    assert sampled(workdir, tmp_path, *flags) == (label, group)


def test_a_group_of_another_class_is_refused(record_only, tmp_path, capsys):
    workdir = record_only(groups=5, nested=True)
    flags = ["--label=one", "--group=3"]
    assert sampling.program([str(workdir), f"--out={tmp_path / 'x'}", *flags]) == 2
    assert "--group=3: must be a group of --label=one" in capsys.readouterr().err


def test_a_generator_of_labels_alone_gets_no_groups(record_only, tmp_path):
    assert sampled(record_only("label"), tmp_path)[1] == [-1] * 7


def test_a_generator_in_training_is_not_sampled_from(record_only, tmp_path, capsys):
    workdir = record_only()
    (workdir / "gen_0002" / "diffusion.json").unlink()
    shutil.copytree(workdir / "gen_0000", workdir / "gen_0003.tmp")
    arguments = [str(workdir), f"--out={tmp_path / 'out'}"]
    assert sampling.program([*arguments, "--generation=2"]) == 2
    message = capsys.readouterr().err
    assert message == "error: --generation=2: must be one of 0 | 1; 2 is still in training\n"
    assert sampling.program([*arguments, "--json"]) == 0
    found = said(capsys)
    assert found["generation"] == 1
    assert found["step"] == config.default().diffusion.later.steps
    for number in (0, 1):
        (workdir / f"gen_000{number}" / "diffusion.json").unlink()
    assert sampling.program([*arguments]) == 2
    assert "no fully trained generator in it" in capsys.readouterr().err


def test_a_solver_from_outside_needs_its_file(record_only, tmp_path, capsys, monkeypatch):
    workdir = record_only()
    edit(workdir / "config.json", lambda stored: stored.update(sample={"sampler": "mine"}))
    arguments = [str(workdir), f"--out={tmp_path / 'out'}"]
    assert sampling.program(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sample.sampler = mine: must be one of euler | heun" in line
    assert line.endswith("--register=FILE.py names a file that adds others")
    file = tmp_path / "solver.py"
    file.write_text(
        "from selfloop_jax.diffusion.solvers import SOLVERS\nSOLVERS['mine'] = SOLVERS['heun']\n"
    )
    monkeypatch.setattr(solvers, "SOLVERS", dict(solvers.SOLVERS))
    assert sampling.program([*arguments, f"--register={file}"]) == 0
    assert sampling.program([*arguments, "--register=none.py"]) == 2
    assert "--register=none.py: must be a Python file" in capsys.readouterr().err
