"""The networks themselves; their logits are held against published ones in test_golden.py."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppcls import MODELS, build_model
from ppcls.architectures.blocks import ConvBN
from ppcls.architectures.efficientnet import ACTIVATIONS, MBConv, drop_connect
from ppcls.errors import ConfigError

# trainable parameters, batch-norm statistics, by torchvision's and timm's metadata and PaddleClas's classes
COUNTS = {
    "ResNeXt101_32x8d_wsl": (88_791_336, 202_880),
    "ResNeXt101_32x16d_wsl": (194_026_792, 332_928),
    "ResNeXt101_32x32d_wsl": (468_530_472, 593_024),
    "ResNeXt101_32x48d_wsl": (828_411_176, 853_120),
    "Fix_ResNeXt101_32x48d_wsl": (828_411_176, 853_120),
    "EfficientNetB0": (5_288_548, 42_016),
    "EfficientNetB1": (7_794_184, 62_048),
    "EfficientNetB2": (9_109_994, 67_568),
    "EfficientNetB3": (12_233_232, 87_296),
    "EfficientNetB4": (19_341_616, 125_200),
    "EfficientNetB5": (30_389_784, 172_736),
    "EfficientNetB6": (43_040_704, 224_432),
    "EfficientNetB7": (66_347_960, 310_720),
    "EfficientNetB0_small": (4_652_008, 42_016),
    "EfficientNetLite0": (4_652_008, 42_016),
    "EfficientNetLite1": (5_416_680, 53_664),
    "EfficientNetLite2": (6_092_072, 58_096),
    "EfficientNetLite3": (8_197_096, 76_672),
    "EfficientNetLite4": (13_006_568, 112_368),
}


def test_every_model_has_a_count():
    assert set(COUNTS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name):
    with paddle.LazyGuard():
        model = build_model(name)
    sizes = {key: math.prod(p.shape) for key, p in model.state_dict().items()}
    statistics = sum(size for key, size in sizes.items() if key.endswith(("._mean", "._variance")))
    assert (sum(sizes.values()) - statistics, statistics) == COUNTS[name]
    assert all(p.stop_gradient for key, p in model.state_dict().items() if key.endswith("._mean"))


@pytest.mark.parametrize(
    "name", ["EfficientNetB0", "EfficientNetB0_small", "EfficientNetLite0", "ResNeXt101_32x8d_wsl"]
)
def test_every_parameter_gets_a_gradient(name):
    paddle.seed(0)
    model = build_model(name, num_classes=5)
    logits = model(paddle.randn([2, 3, 47, 33]))
    assert logits.shape == [2, 5]
    (logits * paddle.randn([2, 5])).sum().backward()
    trainable = {key: p for key, p in model.state_dict().items() if not p.stop_gradient}
    without = [key for key, p in trainable.items() if p.grad is None]
    assert not without
    # a parameter before a batch norm of few values may get a tiny one, but never none
    assert all(np.isfinite(p.grad.numpy()).all() for p in trainable.values())


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 10), (8, 9), (32, 31), (1, 2), (224, 225)])
@pytest.mark.parametrize("is_depthwise", [False, True])
def test_same_padding_is_tensorflows(kernel_size, stride, size, is_depthwise):
    layer = ConvBN(
        4,
        4,
        kernel_size,
        stride,
        groups=4 if is_depthwise else 1,
        padding="same",
        bn_epsilon=1e-3,
        bn_momentum=0.99,
    )
    paddle.seed(0)
    x = paddle.randn([2, 4, *size])
    pads = []
    for length in size:  # the rule of TensorFlow's documentation, the odd pixel at the end
        total = max((math.ceil(length / stride) - 1) * stride + kernel_size - length, 0)
        pads.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = pads
    padded = F.pad(x, [left, right, top, bottom])
    expected = F.conv2d(padded, layer.conv.weight, stride=stride, groups=4 if is_depthwise else 1)
    actual = layer.conv(x)
    assert actual.shape[2:] == [math.ceil(length / stride) for length in size]
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["EfficientNetB0", "EfficientNetB0_small", "EfficientNetLite0"])
def test_exported_equals_eager_at_any_size(name, tmp_path):
    paddle.seed(0)
    model = build_model(name, num_classes=7)
    model.eval()
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32", name="x")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec, full_graph=True), str(tmp_path / "net"))
    exported = paddle.jit.load(str(tmp_path / "net"))
    exported.eval()
    for batch, height, width in ((1, 64, 64), (2, 65, 97), (1, 33, 128)):
        x = paddle.randn([batch, 3, height, width])
        with paddle.no_grad():
            expected, actual = model(x).numpy(), exported(x).numpy()
        assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected)


def test_two_models_in_one_process_are_independent():
    first, second = build_model("EfficientNetB0"), build_model("EfficientNetB0")
    before = second.fc.bias.numpy().copy()
    first.fc.bias.set_value(np.ones(1000, np.float32))
    assert (second.fc.bias.numpy() == before).all()
    assert list(first.state_dict()) == list(second.state_dict())


def test_drop_connect_drops_whole_samples_and_keeps_the_mean():
    paddle.seed(0)
    x = paddle.ones([4000, 2, 1, 3])
    y = drop_connect(x, 0.25).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    assert (y == y[:, :1, :, :1]).all()
    assert abs(y.mean() - 1) < 0.03


def test_drop_connect_rises_linearly_with_depth():
    blocks = build_model("EfficientNetB0").blocks
    assert isinstance(blocks[0], MBConv)
    np.testing.assert_allclose([b.drop_connect_rate for b in blocks], 0.2 * np.arange(16) / 16)


def test_nothing_random_in_evaluation():
    paddle.seed(0)
    model = build_model("EfficientNetB0", num_classes=3)
    x = paddle.randn([2, 3, 32, 32])
    model.eval()
    assert (model(x).numpy() == model(x).numpy()).all()
    model.train()
    assert (model(x).numpy() != model(x).numpy()).any()


def test_batch_norm_as_published():
    for name, epsilon, momentum in (("EfficientNetB0", 1e-3, 0.99), ("ResNeXt101_32x8d_wsl", 1e-5, 0.9)):
        with paddle.LazyGuard():
            model = build_model(name)
        norms = [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
        assert {(n._epsilon, n._momentum) for n in norms} == {(epsilon, momentum)}
    with paddle.LazyGuard():
        model = build_model("EfficientNetB0", bn_momentum=0.9)
    assert model.stem.bn._momentum == 0.9


def test_initialisation_as_in_the_original_code():
    paddle.seed(0)
    model = build_model("EfficientNetB0")
    block = model.blocks[3]
    for conv, fan_out in ((block.expand.conv, 144), (block.depthwise.conv, 25), (block.project.conv, 40)):
        assert abs(conv.weight.numpy().std() * math.sqrt(fan_out / 2) - 1) < 0.1
    weight = model.fc.weight.numpy()
    assert abs(weight).max() <= 1 / math.sqrt(1000) and abs(weight).max() > 0.99 / math.sqrt(1000)
    assert (model.fc.bias.numpy() == 0).all()
    wsl = build_model("ResNeXt101_32x8d_wsl")
    grouped = wsl.blocks[0].grouped.conv.weight.numpy()
    assert abs(grouped.std() * math.sqrt(9 * 256 / 2) - 1) < 0.1
    assert 0 < abs(wsl.fc.bias.numpy()).max() <= 1 / math.sqrt(2048)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "EfficientNetB8"}, "did you mean EfficientNetB"),
        ({"name": "efficientnetb0"}, "did you mean EfficientNetB0"),
        ({"name": "EfficientNetB0", "drop_conect": 0.1}, "did you mean drop_connect"),
        ({"name": "ResNeXt101_32x8d_wsl", "drop_connect": 0.1}, "no option 'drop_connect'"),
        ({"name": "EfficientNetB0", "num_classes": 0}, "num_classes must be at least 2"),
        ({"name": "EfficientNetB0", "padding": "valid"}, "padding must be"),
        ({"name": "EfficientNetB0", "dropout": 1.0}, "dropout must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        build_model(**arguments)


def test_activations_have_finite_gradients_far_from_zero():
    """Paddle's silu has none below -88, where its exponential overflows."""
    for activation in ACTIVATIONS.values():
        x = paddle.to_tensor([-1e4, -100.0, -88.0, 88.0, 1e4], stop_gradient=False)
        activation(x).sum().backward()
        assert np.isfinite(x.grad.numpy()).all()
