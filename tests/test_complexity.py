"""Multiply-adds, against real forward passes and published figures."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls import MODELS, build_model
from ppcls.complexity import multiply_adds

# at the nominal size; torchvision's metadata give the same for B0, B1, B3 to B7 and 32x8d, rounded, and a
# forward pass of efficientnet-lite-pytorch for Lite0 to Lite4
MULTIPLY_ADDS = {
    "EfficientNetB0": 385_814_752,
    "EfficientNetB1": 686_802_832,
    "EfficientNetB2": 993_561_872,
    "EfficientNetB3": 1_827_141_392,
    "EfficientNetB4": 4_393_771_024,
    "EfficientNetB5": 10_266_384_752,
    "EfficientNetB6": 19_067_593_536,
    "EfficientNetB7": 37_745_884_192,
    "EfficientNetB0_small": 385_187_552,
    "EfficientNetLite0": 385_187_552,
    "EfficientNetLite1": 600_185_232,
    "EfficientNetLite2": 859_736_272,
    "EfficientNetLite3": 1_383_321_872,
    "EfficientNetLite4": 2_553_034_336,
    "ResNeXt101_32x8d_wsl": 16_414_015_488,
    "ResNeXt101_32x16d_wsl": 36_163_289_088,
    "ResNeXt101_32x32d_wsl": 87_106_781_184,
    "ResNeXt101_32x48d_wsl": 153_310_199_808,
    "Fix_ResNeXt101_32x48d_wsl": 312_875_827_200,
}
SMALL = ["EfficientNetB0", "EfficientNetB0_small", "EfficientNetLite0", "ResNeXt101_32x8d_wsl"]


def lazy(name):
    with paddle.LazyGuard():
        return build_model(name)


def counted_while_an_image_runs(model, height, width):
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        weights = layer.weight.shape[:1] if isinstance(layer, nn.Linear) else layer.weight.shape[1:]
        total += math.prod(weights) * math.prod(output.shape)

    for layer in model.sublayers():
        if isinstance(layer, (nn.Conv2D, nn.Linear)):
            layer.register_forward_post_hook(count)
    model.eval()
    with paddle.no_grad():
        model(paddle.zeros([1, 3, height, width]))
    return total


def test_every_model_has_a_count():
    assert set(MULTIPLY_ADDS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_multiply_adds_at_the_nominal_size(name):
    size = MODELS[name].image_size
    assert multiply_adds(lazy(name), size, size) == MULTIPLY_ADDS[name]


@pytest.mark.parametrize(
    ("name", "size"), [*((name, (97, 50)) for name in SMALL), ("EfficientNetB0", (64, 64))]
)
def test_multiply_adds_are_those_of_an_image_that_runs(name, size):
    model = build_model(name, num_classes=7)
    expected = counted_while_an_image_runs(model, *size)
    assert multiply_adds(model, *size) == expected


def test_counting_leaves_the_network_as_it_was():
    paddle.seed(0)
    model = build_model("EfficientNetB0", num_classes=3, dropout=0.0, drop_connect=0.0)
    x = paddle.randn([2, 3, 33, 40])
    model.eval()
    before, keys = model(x).numpy(), list(model.state_dict())
    model.train()
    multiply_adds(model, 224, 224)
    assert model.training and model.blocks[0].training
    model.eval()
    np.testing.assert_array_equal(model(x).numpy(), before)
    assert list(model.state_dict()) == keys
    assert not any("forward" in vars(layer) for layer in model.sublayers())
    assert not any(layer._forward_post_hooks for layer in model.sublayers())


def test_a_failure_leaves_the_network_as_it_was():
    model = lazy("EfficientNetB0")
    model.fc.register_forward_pre_hook(lambda layer, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        multiply_adds(model, 64, 64)
    assert model.training
    assert not any("forward" in vars(layer) for layer in model.sublayers())


def test_counting_reads_no_weights():
    model = lazy("Fix_ResNeXt101_32x48d_wsl")
    multiply_adds(model, 320, 320)
    assert not any(parameter._is_initialized() for parameter in model.parameters())
