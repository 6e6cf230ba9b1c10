"""Tests the networks of fidelity against the packages that their weights come from."""

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from reference import formula

from selfloop_jax.errors import UsageError
from selfloop_jax.models import efficientnet_lite, inception, torch_weights

REFERENCE = Path(__file__).parents[1] / "reference"
# The scale of make_torch_features.py.
SCALE = 0.75
NETWORKS = {
    "efficientnet_lite0": (efficientnet_lite.EfficientNetLite(), efficientnet_lite.torch_name),
    "inception": (inception.Inception(), inception.torch_name),
}


@cache
def case(name):
    """What a package computed, and the weights by formula that it computed it from."""
    found = json.loads((REFERENCE / f"{name}.json").read_text())
    weights = {}
    for key, shape in found["shapes"].items():
        weights[key] = formula.tensor(key, tuple(shape), SCALE)
    return found, weights


@cache
def shapes(name):
    image = jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32)
    return jax.eval_shape(NETWORKS[name][0].init, jax.random.key(0), image)


def filled(name, weights):
    _, name_of = NETWORKS[name]
    return torch_weights.fill(shapes(name), weights, name_of, f"--weights = {name}.pth")


def images(found):
    return (formula.images(found["count"], found["side"]).astype(np.float32) - 128) / 128


def close(computed, expected):
    """Whether numbers agree to 1e-4 of the largest, and depend on the image at all."""
    expected = np.array(expected)
    scale = np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 0.02 * scale
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_the_package(name):
    """And of EfficientNet the logits, which follow from them by the last layer."""
    found, weights = case(name)
    variables = filled(name, weights)
    net, _ = NETWORKS[name]
    features = jax.jit(lambda x: net.apply(variables, x, features=True))(images(found))
    close(features, found["features"])
    if "logits" in found:
        close(features @ weights["_fc.weight"].T + weights["_fc.bias"][None], found["logits"])


def test_logits_are_the_last_layer_of_the_features():
    net = efficientnet_lite.EfficientNetLite(5, efficientnet_lite.LITE0[:1], stem=4, head=8)
    x = images({"count": 2, "side": 9})
    variables = jax.jit(net.init)(jax.random.key(0), x)
    last = variables["params"]["fc"]
    features = net.apply(variables, x, features=True)
    assert features.shape == (2, 8)
    expected = features @ last["kernel"] + last["bias"][None]
    np.testing.assert_allclose(net.apply(variables, x), expected, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 7), (5, 2, 7), (5, 2, 8)])
def test_a_depthwise_convolution_is_that_of_jax(kernel, stride, side):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, side, side + 3, 4)).astype(np.float32)
    weights = random.normal(size=(kernel, kernel, 1, 4)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        *(x, weights, (stride, stride), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    found = efficientnet_lite.depthwise(x, weights, (stride, stride), "SAME")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_of_another_network_are_refused():
    _, weights = case("inception")

    def refusal(tensors):
        with pytest.raises(UsageError) as caught:
            filled("inception", tensors)
        start = "--weights = inception.pth: does not fit this network: "
        assert str(caught.value).startswith(start)
        return str(caught.value).removeprefix(start)

    # torchvision's own Inception v3 has these and 1,000 classes.
    others = {"AuxLogits.fc.bias": np.zeros(3), "AuxLogits.fc.weight": np.zeros(3)}
    assert refusal(weights | others) == "also has AuxLogits.fc.bias, AuxLogits.fc.weight"
    assert refusal(weights | {"fc.bias": np.zeros(1000)}) == (
        "fc.bias is (1000,) but must be (1008,)"
    )
    lacking = {name: x for name, x in weights.items() if not name.startswith("Mixed_7c")}
    assert refusal(lacking).endswith("; and 42 more")
    assert "is missing but must be (" in refusal(lacking)
    filled("inception", weights | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(1)})


@pytest.mark.parametrize(
    ("name", "package"),
    [("efficientnet_lite0", "efficientnet_lite_pytorch"), ("inception", "pytorch_fid")],
)
def test_features_are_those_of_the_installed_package(name, package, monkeypatch):
    """On an image of another seed than the reference; only where PyTorch is installed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip(package)
    monkeypatch.syspath_prepend(REFERENCE)
    import make_torch_features

    net, run = make_torch_features.MAKERS[name]()
    net.eval()
    make_torch_features.fill(net)
    side = make_torch_features.SIDES[name]
    x = np.random.default_rng(1).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        expected = run(torch.from_numpy(x).permute(0, 3, 1, 2))["features"].numpy()
    _, weights = case(name)
    variables = filled(name, weights)
    ours, _ = NETWORKS[name]
    close(jax.jit(lambda x: ours.apply(variables, x, features=True))(x), expected)
