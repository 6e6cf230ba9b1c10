"""Tests the networks: shapes, conditioning, dropout, parameters, BatchNorm over devices."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from selfloop_jax.config import AugmentConfig, ClassifierConfig
from selfloop_jax.models import layers, unet, vgg
from selfloop_jax.models.layers import Conv
from selfloop_jax.models.lenet import LeNet
from selfloop_jax.models.resnet import Bottleneck, ResNet
from selfloop_jax.runtime import environment, parallel
from selfloop_jax.training import classifier
from selfloop_jax.training.pixels import normalize, to_unit_range


def u_net(**changes):
    tiny = {
        "channels": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (),
        "heads": 2,
        "dropout": 0.0,
    }
    return unet.UNet(**{"num_classes": 3, "num_groups": 2, "stem": 1, **tiny, **changes})


def inputs(count, side):
    """x, noise level, label and group of `count` images."""
    x = jax.random.normal(jax.random.key(0), (count, side, side, 3))
    label = jnp.arange(count, dtype=jnp.int32) % 3
    return x, 100.0 * jnp.arange(count, dtype=jnp.float32) - 300, label, label % 2


def random_params(model, *arguments):
    """Normal parameters of standard deviation 0.2, so that nothing is hidden by an initial zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda s: random.normal(0, 0.2, s.shape).astype(np.float32), shapes)


def random_variables(model, *arguments):
    """Random parameters, and ones as statistics, where the model has any."""
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), *arguments))
    ones = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)
    return {**ones, "params": random_params(model, *arguments)}


def run(model, params, *arguments):
    return np.asarray(jax.jit(model.apply)({"params": params}, *arguments))


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def leaves(tree):
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


BFLOAT16 = {
    "unet": lambda dtype: (u_net(attention=(4,), dtype=dtype), inputs(4, 8)),
    **{
        name: lambda dtype, name=name, more=more: (
            classifier.build(section(network=name, width=8, **more), 3, dtype),
            (inputs(4, 8)[0],),
        )
        for name, more in {
            "lenet": {},
            "resnet": {"stages": (1, 1)},
            "resnet50": {"layout": "imagenet"},
            "vgg11": {"layout": "imagenet"},
        }.items()
    },
}


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_is_for_activations_alone(name):
    """Weights and outputs stay float32; the output is close to that of float32, not equal."""
    (exact, arguments), (rounded, _) = (BFLOAT16[name](dtype) for dtype in (None, "bfloat16"))
    shapes = jax.eval_shape(rounded.init, jax.random.key(0), *arguments)
    assert shapes == jax.eval_shape(exact.init, jax.random.key(0), *arguments)
    for path, leaf in leaves(shapes).items():
        assert leaf.dtype == jnp.float32, path
    variables = random_variables(exact, *arguments)
    a, b = (jax.jit(model.apply)(variables, *arguments) for model in (exact, rounded))
    assert b.dtype == jnp.float32
    assert 1e-5 < relative(b, a) < 0.1
    within = jax.make_jaxpr(rounded.apply)(variables, *arguments)
    kernels = [e for e in within.jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert kernels
    assert all(e.outvars[0].aval.dtype == jnp.bfloat16 for e in kernels)


def test_sums_of_a_normalisation_stay_float32():
    """A mean of many bfloat16 values that all round to one number is still right."""
    x = (100 + jnp.linspace(-1, 1, 4096)).astype(jnp.bfloat16).reshape(1, 32, 32, 4)
    norm = layers.GroupNorm()
    out = norm.apply(norm.init(jax.random.key(0), x), x)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-6)
    assert relative(out, expected) < 0.01


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (20, 5), (42, 7), (256, 32)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("affine", [False, True])
def test_group_norm_and_its_gradients_are_those_of_flax(channels, groups, dtype, affine):
    x = (3 + jax.random.normal(jax.random.key(0), (2, 5, 3, channels))).astype(dtype)
    weight = jax.random.normal(jax.random.key(1), x.shape)
    theirs = nn.GroupNorm(num_groups=groups, use_scale=affine, use_bias=affine, dtype=dtype)
    params = random_params(layers.GroupNorm(affine), x) if affine else {}

    def both(norm):
        def scalar(params, x):
            return jnp.sum(weight * norm.apply({"params": params}, x).astype(jnp.float32))

        @jax.jit
        def all_of_it(params, x):
            out = norm.apply({"params": params}, x)
            return out, *jax.tree.leaves(jax.grad(scalar, argnums=(0, 1))(params, x))

        found = all_of_it(params, x)
        assert found[0].dtype == dtype
        return found

    with jax.numpy_dtype_promotion("standard"):
        theirs = both(theirs)
    for ours, expected in zip(both(layers.GroupNorm(affine)), theirs, strict=True):
        assert relative(ours, expected) < (1e-5 if dtype == jnp.float32 else 0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (4, 4)])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, "SAME"), (3, 1, 1), (3, 2, 1), (1, 1, 0)]
)
def test_convolutions_and_their_gradients_are_those_of_flax(shape, size, stride, padding):
    options = {"features": 5, "kernel_size": (size, size), "strides": stride, "padding": padding}
    ours, theirs = Conv(**options), nn.Conv(**options)
    x = jax.random.normal(jax.random.key(0), (3, *shape, 4))
    params = random_params(ours, x)
    weight = jax.random.normal(jax.random.key(1), theirs.apply({"params": params}, x).shape)

    def scalar(params, x, conv):
        return jnp.sum(weight * conv.apply({"params": params}, x))

    found, expected = (jax.grad(scalar, argnums=(0, 1))(params, x, conv) for conv in (ours, theirs))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative(a, b) < 1e-5
    small = max(shape) <= 2 and size == 3 and stride == 1
    assert (
        "conv_general_dilated" in str(jax.make_jaxpr(scalar, static_argnums=2)(params, x, ours))
    ) != small


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("side", [2, 7, 8])
def test_max_pooling_and_its_gradient_are_those_of_flax(window, stride, padding, side):
    if side + 2 * padding < window:
        pytest.skip("no window fits")
    # Quarters, so that many values are equal, and zeros as after a ReLU.
    x = nn.relu(jnp.round(4 * jax.random.normal(jax.random.key(0), (3, side, side, 4))) / 4)
    x = x.at[0, 0, 0, 0].set(jnp.nan).at[1, -1, -1, 1].set(-jnp.inf)

    def theirs(x):
        return nn.max_pool(x, (window,) * 2, (stride,) * 2, ((padding,) * 2,) * 2)

    def ours(x):
        return layers.max_pool(x, window, stride, padding)

    np.testing.assert_array_equal(ours(x), theirs(x))
    x = jnp.nan_to_num(x)
    weight = jax.random.normal(jax.random.key(1), ours(x).shape)
    found, expected = (
        jax.grad(lambda x, pool=pool: jnp.sum(weight * pool(x)))(x) for pool in (ours, theirs)
    )
    # Windows that overlap add up in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if window == stride else 1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_embedding_has_the_bits_of_flax_and_its_gradient(dtype):
    index = jnp.array([2, 0, 2, 4, 4, 4])
    ours, theirs = (kind(5, 7, dtype=dtype) for kind in (layers.Embed, nn.Embed))
    params = random_params(theirs, index)
    weight = jax.random.normal(jax.random.key(1), (6, 7)).astype(dtype)

    def scalar(params, embed):
        return jnp.sum(weight * embed.apply({"params": params}, index)).astype(jnp.float32)

    found, expected = (embed.apply({"params": params}, index) for embed in (ours, theirs))
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    found, expected = (jax.grad(scalar)(params, embed)["embedding"] for embed in (ours, theirs))
    assert relative(found, expected) < (1e-6 if dtype == jnp.float32 else 0.01)


@pytest.mark.parametrize(
    "option", [{"kernel_dilation": 2}, {"input_dilation": 2}, {"feature_group_count": 2}]
)
def test_unusual_convolutions_of_small_maps_are_those_of_flax(option):
    options = {"features": 6, "kernel_size": (3, 3), "padding": 1, **option}
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    params = random_params(Conv(**options), x)
    ours, theirs = (conv(**options).apply({"params": params}, x) for conv in (Conv, nn.Conv))
    np.testing.assert_array_equal(ours, theirs)


def test_activations_computed_again_change_no_weight_and_no_gradient():
    arguments = inputs(4, 8)
    plain, again = (u_net(dropout=0.1, attention=(4,), remat=remat) for remat in (False, True))
    params = random_params(plain, *arguments)
    keys = jax.random.split(jax.random.key(1), 4)
    assert leaves(params).keys() == leaves(random_params(again, *arguments)).keys()

    def slope(model):
        return jax.jit(
            jax.grad(lambda p: jnp.sum(model.apply({"params": p}, *arguments, keys) ** 2))
        )

    for a, b in zip(
        *(jax.tree.leaves(slope(model)(params)) for model in (plain, again)), strict=True
    ):
        assert relative(b, a) < 1e-5
    text = str(jax.make_jaxpr(slope(again))(params))
    assert "remat" in text or "checkpoint" in text


@pytest.mark.parametrize(
    ("capability", "dtype", "depth", "kernel"),
    [
        ((9, 0), jnp.bfloat16, 256, "cudnn"),
        ((8, 0), jnp.bfloat16, 128, "cudnn"),
        ((8, 0), jnp.bfloat16, 256, "xla"),  # beyond what cuDNN takes before Hopper
        ((9, 0), jnp.bfloat16, 20, "xla"),  # no multiple of 8
        ((9, 0), jnp.float32, 64, "xla"),
        ((7, 5), jnp.bfloat16, 64, "xla"),
        ((0, 0), jnp.bfloat16, 64, "xla"),
    ],
)
def test_attention_is_that_of_cudnn_where_it_takes_the_heads(
    capability, dtype, depth, kernel, monkeypatch
):
    monkeypatch.setattr(environment, "cuda_capability", lambda: capability)
    asked = []

    def attention(query, key, value, implementation):
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    x = jnp.zeros((1, 2, 2, depth), dtype)
    jax.eval_shape(unet.Attention(heads=1).init, jax.random.key(0), x)
    assert asked == [kernel]


def test_a_device_without_cuda_has_no_capability(monkeypatch):
    assert environment.cuda_capability() == (0, 0)
    for given, found in (("9.0", (9, 0)), ("gfx942", (0, 0))):
        device = SimpleNamespace(compute_capability=given)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert environment.cuda_capability() == found


@pytest.mark.parametrize(
    ("side", "changes"),
    [
        (8, {}),
        (8, {"multipliers": (1,), "blocks": 2}),
        (8, {"attention": (4,)}),
        (8, {"multipliers": (1, 2, 3), "attention": (2, 8), "num_groups": 0}),
        (16, {}),
        (16, {"stem": 2, "attention": (8, 4)}),
        (16, {"stem": 4, "channels": 12}),
    ],
)
def test_unet_output_has_the_shape_of_its_input(side, changes):
    model = u_net(**changes)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs(5, side))
    assert out.shape == (5, side, side, 3)
    assert out.dtype == jnp.float32


def test_a_new_unet_returns_zero():
    model = u_net(multipliers=(1,), blocks=0, stem=2)
    out, variables = jax.jit(model.init_with_output)(jax.random.key(0), *inputs(2, 8))
    np.testing.assert_array_equal(out, 0)
    assert np.std(variables["params"]["stem_conv"]["kernel"]) > 0.01


@pytest.fixture(scope="module")
def conditioned():
    """`apply(label, group)` of one image under a U-Net of random weights, conditioned on both."""
    model = u_net()
    x, level, label, group = inputs(1, 8)
    params = random_params(model, x, level, label, group)
    program = jax.jit(model.apply)
    return lambda c, g: np.asarray(
        program({"params": params}, x, level, label * 0 + c, group * 0 + g)
    )


def test_the_output_differs_for_every_label_and_the_null_label(conditioned):
    outputs = [conditioned(label, 0) for label in range(4)]
    assert all(relative(outputs[i], outputs[j]) > 1e-3 for i in range(4) for j in range(i))


def test_the_output_differs_for_every_group_and_the_null_group(conditioned):
    outputs = [conditioned(0, group) for group in range(3)]
    assert all(relative(outputs[i], outputs[j]) > 1e-3 for i in range(3) for j in range(i))


def test_group_is_left_out_without_groups():
    model = u_net(num_groups=0)
    x, level, label, group = inputs(2, 8)
    params = random_params(model, x, level, label, group)
    assert "group" not in params
    np.testing.assert_array_equal(
        run(model, params, x, level, label, group), run(model, params, x, level, label, group + 1)
    )


def test_output_depends_on_the_noise_level(conditioned):
    model = u_net()
    x, level, label, group = inputs(1, 8)
    params = random_params(model, x, level, label, group)
    assert (
        relative(run(model, params, x, level + 50, label, group), conditioned(label, group)) > 1e-3
    )


def test_attention_is_at_the_configured_sides_and_in_the_middle():
    def count(attention):
        params = jax.eval_shape(u_net(attention=attention).init, jax.random.key(0), *inputs(1, 8))[
            "params"
        ]
        return sum(name.startswith("Attention") for name in params)

    # One block going down and two going up at each side; the middle has attention wherever there is
    # any, and its two blocks lie at side 4.
    assert count(()) == 0
    assert count((8,)) == 3 + 1
    assert count((4,)) == 3 + 2 + 1
    assert count((4, 8)) == 6 + 2 + 1


def test_no_bias_lies_directly_before_a_normalisation():
    params = jax.eval_shape(u_net().init, jax.random.key(0), *inputs(1, 8))["params"]
    blocks = [block for name, block in params.items() if name.startswith("ResidualBlock")]
    assert len(blocks) == 8
    for block in blocks:
        assert set(block["Conv_0"]) == {"kernel"}
        assert "GroupNorm_1" not in block  # scale and shift come from the embedding instead
    resnet = ResNet(num_classes=10, stages=(1, 1), width=8)
    params = jax.eval_shape(resnet.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    biases = [
        jax.tree_util.keystr(path) for path, _ in leaves if "bias" in jax.tree_util.keystr(path)
    ]
    assert biases
    assert all("BatchNorm" in name or name.startswith("['Dense_0']") for name in biases)


def test_dropout_masks_do_not_depend_on_the_batch():
    model = u_net(multipliers=(1,), blocks=0, dropout=0.5)
    arguments = inputs(3, 4)
    params = random_params(model, *arguments)
    keys = jax.random.split(jax.random.key(7), 3)
    together = run(model, params, *arguments, keys)
    alone = [run(model, params, *(a[i : i + 1] for a in (*arguments, keys)))[0] for i in range(3)]
    np.testing.assert_allclose(
        together, np.stack(alone), rtol=0, atol=1e-5 * np.abs(together).max()
    )
    without, other = run(model, params, *arguments), run(model, params, *arguments, keys[::-1])
    for i in range(3):
        assert relative(together[i], without[i]) > 0.01
    for i in (0, 2):
        assert relative(together[i], other[i]) > 0.01


def test_dropout_keeps_the_mean_and_zeroes_its_rate():
    keys = jax.random.split(jax.random.key(1), 5)
    out = np.asarray(layers.dropout(jnp.ones((5, 32, 32, 4)), 0.25, keys))
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), 1, atol=0.05)  # five standard errors
    np.testing.assert_array_equal(
        layers.dropout(jnp.ones((1, 32, 32, 4)), 0.25, keys[3:4]), out[3:4]
    )
    assert np.any(out[0] != out[1])


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_depth_to_space_undoes_space_to_depth(factor):
    x = np.arange(2 * 8 * 8 * 3, dtype=np.float32).reshape(2, 8, 8, 3)
    folded = layers.space_to_depth(x, factor)
    assert folded.shape == (2, 8 // factor, 8 // factor, 3 * factor**2)
    np.testing.assert_array_equal(folded[1, 1, 0], x[1, factor : 2 * factor, :factor].ravel())
    np.testing.assert_array_equal(layers.depth_to_space(folded, factor), x)


def test_sinusoid_has_geometric_frequencies():
    levels = np.array([-500.0, 0.0, 0.25, 1000.0])
    angle = levels[:, None] * 10_000.0 ** (-np.arange(4) / 4)[None]
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(unet.sinusoid(jnp.float32(levels), 8), expected, atol=1e-3)


def test_attention_equals_its_definition():
    model, x = unet.Attention(heads=2), np.random.default_rng(1).normal(size=(2, 3, 2, 8))
    params = random_params(model, jnp.float32(x))
    out = run(model, params, jnp.float32(x))

    norm, dense_in, dense_out = (params[name] for name in ("GroupNorm_0", "Dense_0", "Dense_1"))
    grouped = x.reshape(2, 6, 2, 4)  # 2 groups of 4 channels
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    h = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(2, 6, 8) * norm["scale"] + norm["bias"]
    q, k, v = np.split(h @ dense_in["kernel"] + dense_in["bias"], 3, axis=-1)
    mixed = np.empty_like(q)
    for head in (slice(0, 4), slice(4, 8)):
        weight = np.exp(q[..., head] @ k[..., head].swapaxes(1, 2) / 2)
        mixed[..., head] = weight / weight.sum(-1, keepdims=True) @ v[..., head]
    expected = x + (mixed @ dense_out["kernel"] + dense_out["bias"]).reshape(x.shape)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def section(**changes):
    """Section `classifier`, changed."""
    return ClassifierConfig(**changes)


def shapes_of(model, side):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


@pytest.mark.parametrize(
    ("network", "layout", "classes", "count"),
    [
        ("resnet", "small", 10, 11_173_962),
        ("resnet18", "small", 10, 11_173_962),
        ("resnet18", "imagenet", 1000, 11_689_512),
        ("resnet50", "imagenet", 1000, 25_557_032),
        # torchvision's convolutions have biases, which BatchNorm takes out again.
        ("vgg11", "imagenet", 1000, 132_868_840 - (64 + 128 + 2 * 256 + 4 * 512)),
        ("vgg16", "imagenet", 1000, 138_365_992 - (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)),
    ],
)
def test_networks_have_their_known_number_of_parameters(network, layout, classes, count):
    model = classifier.build(section(network=network, layout=layout), classes)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model, 64)["params"])) == count


@pytest.mark.parametrize("layout", ["small", "imagenet"])
@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize("network", ["lenet", "resnet", "resnet50", "vgg11"])
def test_classifiers_return_one_logit_per_class_at_any_side(network, side, layout):
    model = classifier.build(section(network=network, stages=(1, 1, 1), width=4, layout=layout), 7)
    out, _ = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.zeros((5, side, side, 3))
    )
    assert out.shape == (5, 7)


def test_resnet18_is_the_resnet_of_two_blocks_a_stage():
    assert classifier.build(section(network="resnet18"), 7) == classifier.build(section(), 7)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 10, 14])
def test_adaptive_pooling_equals_its_definition(side):
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    expected = np.zeros((2, 7, 7, 3))
    for i, j in np.ndindex(7, 7):
        rows, columns = (slice(k * side // 7, -(-(k + 1) * side // 7)) for k in (i, j))
        expected[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    np.testing.assert_allclose(vgg.adaptive_average_pool(x, 7), expected, rtol=0, atol=1e-6)


def test_dropout_of_the_vgg_is_keyed_by_example():
    model = vgg.VGG(num_classes=5, stages=(1, 1), width=1, layout="imagenet")
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    shapes = shapes_of(model, 8)
    variables = {"params": random_params(model, x)}
    variables["batch_stats"] = jax.tree.map(
        lambda s: np.ones(s.shape, np.float32), shapes["batch_stats"]
    )
    program = jax.jit(lambda x, keys: model.apply(variables, x, keys=keys))
    keys = jax.random.split(jax.random.key(1), 4)
    dropped = program(x, keys)
    np.testing.assert_allclose(program(x[::-1], keys[::-1]), dropped[::-1], rtol=1e-5)
    assert relative(dropped, program(x, keys[::-1])) > 1e-3
    assert relative(dropped, program(x, None)) > 1e-3


def test_normalisation_is_that_of_imagenet():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = normalize(to_unit_range(pixels), "imagenet")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        normalize(to_unit_range(pixels), "unit"), pixels / 127.5 - 1, atol=1e-6
    )


def classifier_loss(asked, devices):
    """Loss of 8 images on `devices` devices, and the statistics it leaves."""
    model = classifier.build(asked, 3)
    random = np.random.default_rng(0)
    batch = {"pixels": random.integers(0, 256, (8, 8, 8, 3), np.uint8), "label": np.arange(8) % 3}
    batch["position"] = np.arange(8, dtype=np.int32)
    batch = {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}
    params = random_params(model, batch["pixels"][0].astype(np.float32))
    stats = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes_of(model, 8)["batch_stats"])

    def one_device(key, batch):
        value, (new, _) = classifier.loss(params, stats, batch, key, model=model, section=asked)
        return jax.lax.pmean(value, parallel.AXIS), new

    program = jax.pmap(
        one_device, parallel.AXIS, in_axes=(None, 0), devices=jax.devices()[:devices]
    )
    value, new = program(jax.random.key(2), batch)
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], new)
    return np.asarray(value)[0], ravel_pytree(first)[0], ravel_pytree(stats)[0]


def test_augmented_loss_does_not_depend_on_the_number_of_devices():
    asked = section(network="resnet", stages=(1,), width=4)
    plain, _, _ = classifier_loss(asked, 1)
    asked = replace(asked, augment=AugmentConfig(flip=True, crop=2, brightness=0.5, hue=0.2))
    (one, one_stats, _), (four, four_stats, _) = (classifier_loss(asked, n) for n in (1, 4))
    np.testing.assert_allclose(four, one, rtol=1e-5)
    assert relative(four_stats, one_stats) < 1e-5
    assert abs(one - plain) > 1e-3


def test_a_frozen_network_reads_its_running_statistics_and_keeps_them():
    asked = section(network="resnet", stages=(1,), width=4)
    trained, new, stats = classifier_loss(asked, 1)
    assert relative(new, stats) > 0.01
    asked = replace(asked, freeze=True)
    frozen, kept, stats = classifier_loss(asked, 1)
    np.testing.assert_array_equal(kept, stats)
    assert abs(frozen - trained) > 1e-3


@pytest.mark.parametrize(
    "model",
    [
        ResNet(num_classes=3, stages=(1, 1), width=4),
        ResNet(num_classes=3, stages=(1,), width=4, block=Bottleneck, layout="imagenet"),
        vgg.VGG(num_classes=3, stages=(1, 2), width=4),
        vgg.VGG(num_classes=3, stages=(1,), width=2, layout="imagenet"),
    ],
)
def test_every_parameter_of_a_classifier_matters_in_training(model):
    """A bias before BatchNorm, or a layer that is not connected, would have a gradient of zero."""
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    params = random_params(model, x)
    stats = jax.eval_shape(model.init, jax.random.key(0), x)["batch_stats"]
    stats = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), stats)
    weight = jax.random.normal(jax.random.key(1), (8, 3))

    def total(params):
        variables = {"params": params, "batch_stats": stats}
        return jnp.sum(weight * model.apply(variables, x, train=True, mutable=["batch_stats"])[0])

    for path, gradient in jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(total))(params))[0]:
        assert np.linalg.norm(gradient) > 1e-3, jax.tree_util.keystr(path)


def batch_norm_step(axis_name, devices):
    """Logits and new statistics of one training step of the same 8 images on `devices` devices."""
    model = ResNet(num_classes=3, stages=(1,), width=8, axis_name=axis_name)
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 3)) * (1 + jnp.arange(8.0)).reshape(
        8, 1, 1, 1
    )
    params = random_params(ResNet(num_classes=3, stages=(1,), width=8), x)
    stats = jax.eval_shape(model.init, jax.random.key(0), x)["batch_stats"]
    stats = jax.tree.map(lambda s: np.ones(s.shape, np.float32), stats)

    def step(params, x):
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    program = jax.pmap(
        step, axis_name=parallel.AXIS, in_axes=(None, 0), devices=jax.devices()[:devices]
    )
    logits, new = program(params, x.reshape(devices, 8 // devices, 8, 8, 3))
    first = ravel_pytree(jax.tree.map(lambda leaf: np.asarray(leaf)[0], new["batch_stats"]))[0]
    return np.asarray(logits).reshape(8, 3), np.asarray(first)


def test_batch_norm_does_not_depend_on_the_number_of_devices():
    (one, one_stats), (four, four_stats) = (batch_norm_step(parallel.AXIS, n) for n in (1, 4))
    assert relative(four, one) < 1e-6
    assert relative(four_stats, one_stats) < 1e-6


def test_batch_norm_without_an_axis_depends_on_the_number_of_devices():
    (one, one_stats), (four, four_stats) = (batch_norm_step(None, n) for n in (1, 4))
    assert relative(four, one) > 0.01
    assert relative(four_stats, one_stats) > 0.01


def test_prediction_ignores_the_padding():
    model = LeNet(num_classes=3)
    x = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3), np.uint8)
    params = random_params(model, to_unit_range(x))
    weights = {"params": params, "batch_stats": {}}
    logits = classifier.make_predict(model, section(), 8)(weights, x)
    np.testing.assert_allclose(
        logits, run(model, params, x / np.float32(127.5) - 1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options", "dimension"),
    [
        ("resnet", {}, 16),
        ("lenet", {}, 84),
        ("vgg11", {}, 32),
        ("vgg11", {"layout": "imagenet"}, 256),
    ],
)
def test_features_are_what_the_last_layer_reads(name, options, dimension):
    asked = section(network=name, stages=(1, 1, 1), width=4, **options)
    model = classifier.build(asked, 5)
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    variables = random_variables(model, to_unit_range(x))
    params, weights = variables["params"], {"batch_stats": {}, **variables}
    read = classifier.make_predict(model, asked, 4, features=True)
    features, logits = read(weights, x), classifier.make_predict(model, asked, 4)(weights, x)
    assert features.shape == (3, dimension)
    head = params[
        max((layer for layer in params if layer.startswith("Dense")), key=lambda n: int(n[6:]))
    ]
    kernel, bias = (np.asarray(head[part]) for part in ("kernel", "bias"))
    np.testing.assert_allclose(features @ kernel + bias, logits, rtol=1e-3, atol=1e-5)
    assert read(weights, x[:0]).shape == (0, dimension)
