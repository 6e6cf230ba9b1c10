"""Tests weights from files: PyTorch's logits, misfits, malicious pickles, frozen networks."""

import json
import os
import pickle
import zipfile
from functools import partial
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from reference import formula
from safetensors.numpy import save_file

from selfloop_jax.config import ClassifierConfig, Config, LoopClassifierConfig, LoopConfig
from selfloop_jax.data.images import Images
from selfloop_jax.errors import UsageError
from selfloop_jax.models import torch_file
from selfloop_jax.runtime import environment, keys, parallel
from selfloop_jax.training import checkpoints, classifier, fit
from selfloop_jax.training.step import ema_variables

REFERENCE = Path(__file__).parents[1] / "reference"


SIDE = 8


def section(**changes):
    return ClassifierConfig(**{"batch": 8, "warmup_steps": 1, **changes})


def weights(shapes):
    """Returns {torchvision's name: float32 array} by formula."""
    return {name: formula.tensor(name, shape) for name, shape in shapes.items()}


def torch_save(path, pickled):
    """Writes an archive in the layout of torch.save around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)


def sequence(path, *pickled):
    """Writes a file as torch.save did before PyTorch 1.6: a magic number, a version, pickles."""
    parts = (0x1950A86A20F9469CFC6C, 1001, *pickled)
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))


@pytest.mark.parametrize(("network", "width"), [("resnet18", 64), ("resnet50", 64), ("vgg11", 8)])
def test_logits_are_those_of_torchvision(network, width, tmp_path, capsys):
    """Compares logits from uint8 pixels, by the code of training and of prediction."""
    case = json.loads((REFERENCE / f"{network}.json").read_text())
    file = str(tmp_path / "weights.safetensors")
    save_file(weights(case["shapes"]), file)
    asked = section(
        network=network, width=width, layout="imagenet", normalize="imagenet", init_from=file
    )
    model, expected = classifier.build(asked, 10), np.array(case["logits"])
    trainer = classifier.make_trainer(model, asked, case["side"], 1)
    trainer = classifier.pretrained(trainer, model, asked, "classifier")
    found = trainer.init(keys.key((0, "init")))
    logits = classifier.make_predict(model, asked, 4)(
        found, formula.images(case["count"], case["side"])
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    said = capsys.readouterr().err
    assert "tensors loaded" in said
    assert not any(word in said for word in ("random", "not used"))


@pytest.mark.parametrize("file", ["tiny.pth", "tiny_old.pth"])
def test_a_file_of_torch_save_is_read_without_torch(file):
    found = torch_file.read(str(REFERENCE / file), "x").tensors
    expected = json.loads((REFERENCE / "tiny.json").read_text())
    assert list(found) == [f"module.{name}" for name in expected]
    for name, value in zip(expected, found.values(), strict=True):
        assert str(value.dtype) == expected[name]["dtype"].removeprefix("torch.")
        assert value.astype(np.float64).tolist() == expected[name]["values"], name
    assert found["module.empty"].shape == (0, 3)


def test_safetensors_are_read_in_every_type(tmp_path):
    values = {
        name: np.array([1, -2, 3]).astype(dtype)
        for name, dtype in (
            ("a", np.float32),
            ("b", np.float16),
            ("c", np.int64),
            ("d", ml_dtypes.bfloat16),
        )
    }
    save_file(values, tmp_path / "x.safetensors")
    found = torch_file.read(str(tmp_path / "x.safetensors"), "x").tensors
    assert {name: x.dtype for name, x in found.items()} == {
        name: x.dtype for name, x in values.items()
    }
    assert all(x.tolist() == [1, -2, 3] for x in found.values())


def refusal(file):
    with pytest.raises(UsageError) as caught:
        torch_file.read(str(file), "classifier.init_from")
    assert str(caught.value).startswith(f"classifier.init_from = {file}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Evil:
    """Makes whoever unpickles it write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    for number, payload in enumerate(({"w": Evil(tmp_path / "ran")}, Evil(tmp_path / "ran")) * 2):
        file = tmp_path / f"{number}.pth"
        if number < 2:
            torch_save(file, pickle.dumps(payload, protocol=2))
        else:
            sequence(file, {"little_endian": True}, payload)
        assert f"wants to import '{os.mkdir.__module__}.mkdir'; must hold only tensors" in refusal(
            file
        )
    torch_save(file, b"cbuiltins\neval\n(Vopen('ran', 'w')\ntR.")
    assert "wants to import 'builtins.eval'; must hold only tensors" in refusal(file)
    assert not (tmp_path / "ran").exists()


def storage_of(numbers, length):
    """Returns a torch.save pickle of `length` numbers over a storage of `numbers` numbers."""
    name = b"ctorch._utils\n_rebuild_tensor_v2\n"
    reference = b"((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI%d\ntQ" % numbers
    return b"(dVw\n" + name + reference + b"I0\n(I%d\nt(I1\nttRs." % length


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    file = tmp_path / "x.pth"
    for length, fits in ((4, True), (5, False), (10**12, False), (-1, False)):
        torch_save(file, storage_of(4, length))
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())
        if fits:
            assert torch_file.read(str(file), "x").tensors["w"].tolist() == [0, 1, 2, 3]
        else:
            assert "damaged" in refusal(file)
    torch_save(file, storage_of(4, 4))
    assert "damaged" in refusal(file)  # no storage at all


@pytest.mark.parametrize("source", ["tiny.pth", "tiny_old.pth", "x.safetensors"])
def test_damaged_files_are_refused(source, tmp_path):
    save_file({"w": np.arange(100.0)}, tmp_path / "x.safetensors")
    data = ((REFERENCE if source.endswith(".pth") else tmp_path) / source).read_bytes()
    file = tmp_path / f"damaged{Path(source).suffix}"
    for kept in (0, 10, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:kept])
        assert "damaged or unreadable" in refusal(file)
    # The others have no checksums; the digest in the record covers them.
    if source == "tiny.pth":
        place = data.index(np.float32([4, 5, 6, 7]).tobytes())
        file.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
        assert "damaged or unreadable" in refusal(file)


def test_other_files_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "gone.pth")
    assert "must be a file ending in .safetensors | .pth | .pt" in refusal(tmp_path / "x.h5")
    (tmp_path / "list.pth").write_bytes(pickle.dumps([1, 2], protocol=2))
    assert "must be a file of torch.save" in refusal(tmp_path / "list.pth")
    sequence(tmp_path / "big.pth", {"little_endian": False})
    assert "must be little-endian" in refusal(tmp_path / "big.pth")
    for content in (b"N.", b"(d.", b"(dVepoch\nI3\ns."):
        torch_save(tmp_path / "x.pth", content)
        assert "; must be " in refusal(tmp_path / "x.pth")


NARROW = {"network": "resnet", "stages": (1, 1), "width": 2, "layout": "imagenet"}


@pytest.fixture(scope="module")
def narrow():
    """Weights of a ResNet of two blocks, 2 and 4 channels and 10 classes."""
    shapes = json.loads((REFERENCE / "resnet18.json").read_text())["shapes"]
    kept = ("conv1", "bn1", "layer1.0", "layer2.0", "fc.bias")
    shapes = {name: shape for name, shape in shapes.items() if name.startswith(kept)}
    channels = {64: 2, 128: 4}
    shapes = {name: tuple(channels.get(n, n) for n in shape) for name, shape in shapes.items()}
    return weights(shapes | {"fc.weight": (10, 4)})


def pretrained(tmp_path, tensors, classes=10, **changes):
    """Returns the trainer of a network that starts from a file of `tensors`."""
    file = tmp_path / "w.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, file)
    asked = section(**{**NARROW, "init_from": str(file), **changes})
    model = classifier.build(asked, classes)
    trainer = classifier.make_trainer(model, asked, SIDE, 1)
    return classifier.pretrained(trainer, model, asked, "classifier")


def test_init_puts_the_files_weights_in_and_keeps_a_head_of_another_size(narrow, tmp_path, capsys):
    counter = {"bn1.num_batches_tracked": np.array(3), "extra.weight": np.zeros(3, np.float32)}
    trainer = pretrained(tmp_path, narrow | counter, classes=7)
    found = trainer.init(keys.key((0, "init")))
    report = capsys.readouterr().err.splitlines()
    assert report == [
        f"classifier: 30 tensors loaded from {tmp_path / 'w.safetensors'}; "
        "the head starts from random weights",
        "classifier: 3 tensors of the file not used: extra.weight, fc.bias, fc.weight",
    ]
    asked = section(**NARROW)
    own = classifier.make_trainer(classifier.build(asked, 7), asked, SIDE, 1).init(
        keys.key((0, "init"))
    )
    params, equal = found["params"], np.testing.assert_array_equal
    equal(params["Conv_0"]["kernel"], narrow["conv1.weight"].transpose(2, 3, 1, 0))
    equal(params["BasicBlock_1"]["BatchNorm_2"]["scale"], narrow["layer2.0.downsample.1.weight"])
    equal(params["Dense_0"]["kernel"], own["params"]["Dense_0"]["kernel"])
    equal(found["batch_stats"]["BatchNorm_0"]["var"], narrow["bn1.running_var"])
    assert all(x.sharding == parallel.replicated() for x in jax.tree.leaves(found))
    shape = partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shape(found) == shape(ema_variables(trainer.abstract))
    assert checkpoints.state_digest(
        trainer.init(keys.key((0, "init")))
    ) == checkpoints.state_digest(found)


def misfit(tmp_path, tensors, **changes):
    with pytest.raises(UsageError) as caught:
        pretrained(tmp_path, tensors, **changes)
    start = f"classifier.init_from = {tmp_path / 'w.safetensors'}: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def test_tensors_that_do_not_fit_are_named(narrow, tmp_path):
    assert misfit(tmp_path, narrow, layout="small") == (
        "its stem is 7x7; classifier.layout must be imagenet"
    )
    small = narrow | {"conv1.weight": narrow["conv1.weight"][:, :, :3, :3]}
    assert misfit(tmp_path, small) == "its stem is 3x3; classifier.layout must be small"
    lacking = {name: x for name, x in narrow.items() if name != "layer1.0.bn1.running_var"}
    assert misfit(tmp_path, lacking) == (
        "does not fit this network: layer1.0.bn1.running_var is missing but must be (2,)"
    )
    many = misfit(tmp_path, narrow, width=4)
    assert many.startswith("does not fit this network: ")
    assert many.count(" is (") == 3
    assert many.endswith("; and 27 more")


def test_a_head_that_is_not_in_the_file_starts_anew(narrow, tmp_path, capsys):
    pretrained(tmp_path, {name: x for name, x in narrow.items() if not name.startswith("fc.")})
    assert capsys.readouterr().err.endswith("; the head starts from random weights\n")


def test_digest_is_that_of_the_file(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"abc")
    digest = classifier.weights_digest(str(tmp_path / "x.pth"), "classifier")
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UsageError, match=r"annotator.init_from = gone.pth: No such file"):
        classifier.weights_digest("gone.pth", "annotator")


def check(name="classifier", **changes):
    kind = {"classifier": LoopClassifierConfig, "annotator": ClassifierConfig}[name]
    loop = LoopConfig(group_source="annotator")
    classifier.check(Config(loop=loop, **{name: kind(**changes)}))


def test_check_refuses_init_from_and_freeze_where_they_cannot_apply():
    file = str(REFERENCE / "tiny.pth")
    check(init_from=file, freeze=True)
    with pytest.raises(
        UsageError, match=r"^annotator.init_from = .*: must be '' unless annotator.n"
    ):
        check("annotator", network="lenet", init_from=file)
    with pytest.raises(UsageError, match=r"^classifier.init_from = gone.pth: no such file$"):
        check(init_from="gone.pth")
    with pytest.raises(UsageError, match=r"^classifier.freeze = True: must be False unless class"):
        check(freeze=True)
    with pytest.raises(UsageError, match=r"^annotator.network = alexnet: must be one of resnet | "):
        check("annotator", network="alexnet")


def run(trainer, weights, steps=3, total=10.0):
    """Returns the state after some steps on random images, on the host."""
    random = np.random.default_rng(0)
    pool = Images(
        pixels=random.integers(0, 256, (16, SIDE, SIDE, 3), np.uint8),
        label=random.integers(0, 10, 16, np.int32),
        group=np.zeros(16, np.int32),
        origin=np.full(16, -1, np.int32),
        id=np.arange(16, dtype=np.uint32),
    )
    arrays, key = (
        fit.put_on_devices(fit.training_columns(pool), 16, "device"),
        parallel.replicate(jax.random.key(1)),
    )
    state = trainer.start(weights, 0.1, total)
    for step in range(steps):
        index = np.arange(8)[None] + 8 * (step % 2)
        state, _ = trainer.program(state, arrays, parallel.shard_steps({"index": index}), key)
    return jax.device_get(state)


def test_only_the_head_of_a_frozen_network_changes(narrow, tmp_path):
    narrow = narrow | {
        "bn1.bias": np.float32([-0.0, 0.0])
    }  # adding zero would turn the first into the second
    hard = {"freeze": True, "weight_decay": 0.5, "ema_decay": 0.9, "clip_norm": 1e-3}
    trainer = pretrained(tmp_path, narrow, **hard)
    weights = trainer.init(keys.key((0, "init")))
    start, end = jax.device_get(trainer.start(weights, 0.1, 10.0)), run(trainer, weights)
    moved = {
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_flatten_with_path(
                (start.params, start.ema_params, start.batch_stats, start.ema_batch_stats)
            )[0],
            jax.tree.leaves((end.params, end.ema_params, end.batch_stats, end.ema_batch_stats)),
            strict=True,
        )
        if a.tobytes() != b.tobytes()
    }
    assert moved == {f"[{i}]['Dense_0']['{leaf}']" for i in (0, 1) for leaf in ("kernel", "bias")}
    moments = [x for x in jax.tree.leaves(end.opt_state) if np.ndim(x)]
    assert sorted(x.shape for x in moments) == [(4, 10), (4, 10), (10,), (10,)]


def test_another_length_of_a_frozen_training_compiles_nothing(narrow, tmp_path):
    trainer = pretrained(tmp_path, narrow, freeze=True)
    run(trainer, trainer.init(keys.key((0, "init"))), steps=1, total=10.0)
    compiled = environment.count_compilations()
    run(trainer, trainer.init(keys.key((1, "init"))), steps=2, total=99.0)
    assert compiled() == 0


PREFIXES = [
    *("module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.", "model.module."),
    *("_orig_mod.module.", "student.backbone.", "ema.module."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("others", [{}, {"loss.weight": np.zeros(3, np.float32)}])
def test_what_training_tools_put_before_all_names_is_peeled_off_and_said(
    narrow, tmp_path, capsys, prefix, others
):
    trainer = pretrained(tmp_path, {f"{prefix}{name}": x for name, x in narrow.items()} | others)
    report = capsys.readouterr().err.splitlines()
    assert report[:2] == [
        f"classifier: 32 tensors loaded from {tmp_path / 'w.safetensors'}",
        f"classifier: they lie under {prefix}*",
    ]
    assert report[2:] == (
        ["classifier: 1 tensors of the file not used: loss.weight"] if others else []
    )
    plain = pretrained(tmp_path, narrow)
    key = keys.key((0, "init"))
    assert checkpoints.state_digest(trainer.init(key)) == checkpoints.state_digest(plain.init(key))


def test_two_networks_in_one_file_are_refused(narrow, tmp_path):
    both = {f"{who}.{name}": x for who in ("student", "teacher") for name, x in narrow.items()}
    line = misfit(tmp_path, both)
    assert line == "must hold one network, but has the names of 'student.' and 'teacher.'"
    # Without a prefix is one more way to be named.
    pretrained(tmp_path, narrow | {f"ema.{name}": x for name, x in narrow.items()})


@pytest.mark.parametrize(
    ("keys_", "left"),
    [
        (("state_dict",), ()),
        (("model",), ("ema",)),
        (("model", "state_dict"), ()),
        (("model_state_dict",), ("state_dict_ema",)),
    ],
)
def test_the_dict_of_tensors_inside_a_checkpoint_is_found(keys_, left):
    tensors = {"w": np.zeros(2, np.float32)}
    found = {"epoch": 3, "optimizer": {"state": {0: {"step": np.zeros(1)}}, "param_groups": []}}
    inner = tensors
    for key in reversed(keys_):
        inner = {key: inner}
    for key in left:
        found[key] = tensors
    read = torch_file._state_dict(found | inner)
    assert list(read.tensors) == ["w"]
    assert read.opened == keys_
    assert read.left == left


def with_value(tensors, name, place, value, dtype=np.float32):
    changed = tensors[name].astype(dtype)
    changed.flat[place] = value
    return tensors | {name: changed}


@pytest.mark.parametrize(
    ("name", "value", "dtype", "wanted"),
    [
        ("layer1.0.conv1.weight", np.nan, np.float32, "has values that are not finite"),
        ("fc.bias", np.inf, np.float16, "has values that are not finite"),
        ("fc.bias", 1e39, np.float64, "has values that are not finite"),
        ("fc.bias", -np.inf, ml_dtypes.bfloat16, "has values that are not finite"),
        ("bn1.running_var", -1e-3, np.float32, "has negative values: a variance must be >= 0"),
        ("conv1.weight", 3, np.int8, "is int8: must be floating point"),
        ("conv1.weight", 3, np.uint8, "is uint8: must be floating point"),
        ("conv1.weight", 3, np.int32, "is int32: must be floating point"),
        ("fc.bias", 1, np.bool_, "is bool: must be floating point"),
        ("fc.bias", 1, np.complex64, "is complex64: must be floating point"),
    ],
)
def test_tensors_that_are_no_weights_are_named(narrow, tmp_path, name, value, dtype, wanted):
    changed = with_value(narrow, name, 0, value, dtype)
    assert misfit(tmp_path, changed) == f"{name} {wanted}"
    behind = {f"module.{one}": x for one, x in changed.items()}
    assert misfit(tmp_path, behind) == f"module.{name} {wanted}"


def test_a_head_that_is_not_taken_may_hold_anything(narrow, tmp_path):
    pretrained(tmp_path, with_value(narrow, "fc.weight", 0, np.nan), classes=7)


def test_formats_of_few_bits_are_called_by_their_names(narrow, tmp_path):
    eight = with_value(narrow, "conv1.weight", 0, 3, np.int8)
    scale = {"conv1.weight_scale": np.zeros(1, np.float32)}
    assert misfit(tmp_path, eight | scale) == (
        "conv1.weight is int8: must be floating point; the file is of an 8-bit format: export it "
        "without"
    )
    # As Transformer Engine and others write it: the type is in the header alone.
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "w is F8_E4M3, a type of few bits" in refusal(file)
    for kind in (b"ctorch._utils\n_rebuild_qtensor\n.", b"ctorch\nQInt8Storage\n."):
        torch_save(tmp_path / "x.pth", kind)
        assert "a type of few bits that means nothing without" in refusal(tmp_path / "x.pth")
