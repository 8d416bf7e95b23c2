"""The networks on oneDNN's kernels: as exact as Paddle's, and as safe."""

import gc
import os
import subprocess
import sys
import threading
from ctypes import byref, c_int
from functools import cache, partial

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from helpers import (
    HAS_BF16,
    HAS_ONEDNN,
    LIMIT,
    ROOT,
    build_filled,
    read_golden,
    relative_difference,
    value_from,
)
from two_ranks import SMALL, make_state, weights

from ppcls import build_model
from ppcls.architectures.blocks import ConvBN
from ppcls.architectures.efficientnet import EfficientNet, MBConv
from ppcls.architectures.resnext101_wsl import ResNeXt101
from ppcls.architectures.variants import BottleneckStage, EfficientNetVariant, MBConvStage, ResNeXtVariant
from ppcls.data.loader import Batch
from ppcls.errors import ConfigError, DataError
from ppcls.inference.engines.eager import EagerEngine
from ppcls.onednn import PADDLE, library, norm, primitives, resolve_kernels, usable
from ppcls.onednn.convolution import Geometry
from ppcls.onednn.convolve import convolution
from ppcls.onednn.depthwise import FAST
from ppcls.onednn.networks import OneDNNNetwork, conv_bn, mbconv
from ppcls.onednn.signal_stack import has_signal_stack
from ppcls.training.step import train_step
from ppcls.training.sync_bn import SyncBatchNorm2D

pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="this Paddle comes without oneDNN's library")
NEEDS_BF16 = pytest.mark.skipif(not HAS_BF16, reason="oneDNN multiplies in bfloat16 with AMX")


class ShortVariant(ResNeXtVariant):
    stages = (BottleneckStage(64, 64, 1, 2), BottleneckStage(64, 128, 2, 1), BottleneckStage(128, 128, 2, 2))


def efficientnet(**options):
    options = {"dropout": 0.0, "drop_connect": 0.0} | options
    return EfficientNet(EfficientNetVariant(width=0.5, depth=0.3, image_size=32, **options), 5)


def resnext():
    return ResNeXt101(ShortVariant(width_per_group=2), 5)


ERRORS = RuntimeError, OSError  # Paddle 3 makes an OSError of what a layer written in Python raises
FAMILIES = {"efficientnet": efficientnet, "resnext": resnext}


def arrays_of(model):
    return {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}


def set_arrays(model, arrays):
    for key, tensor in model.state_dict().items():
        tensor.set_value(arrays[key].astype(tensor.numpy().dtype))


def draw_arrays(seed, size, count):
    random = np.random.RandomState(seed)
    images = random.normal(size=(count, 3, size, size)).astype(np.float32)
    return images, np.arange(count), random.randint(0, 3, count), []


def draw(seed, size, count, dtype="float32"):
    random = np.random.RandomState(seed)
    images = random.normal(size=(count, 3, size, size)).astype(dtype)
    return paddle.to_tensor(images), paddle.to_tensor(random.randint(0, 5, count))


def pass_both_ways(model, network, images, labels):
    """Return the loss and the gradients of a training step, and leave none."""
    network.train()
    loss = F.cross_entropy(network(images), labels)
    loss.backward()
    gradients = {
        name: parameter.grad.numpy().astype(np.float64)
        for name, parameter in model.named_parameters()
        if not parameter.stop_gradient and parameter.grad is not None
    }
    for parameter in model.parameters():
        parameter.clear_gradient(False)
    return loss.item(), gradients


def difference(actual, expected):
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# Exact


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_as_near_to_float64_as_paddles(family, seed, record_property):
    paddle.seed(seed)
    model = FAMILIES[family]()
    start = arrays_of(model)
    paddle.set_default_dtype("float64")
    try:
        exact = FAMILIES[family]()
    finally:
        paddle.set_default_dtype("float32")
    set_arrays(exact, start)
    _, expected = pass_both_ways(exact, exact, *draw(seed, 48, 8, "float64"))
    largest = max(map(np.linalg.norm, expected.values()))
    names = [name for name in expected if np.linalg.norm(expected[name]) > 1e-6 * largest]
    assert len(names) > 50
    networks, medians = {"Paddle": model, "oneDNN": OneDNNNetwork(model)}, {}
    if HAS_BF16:
        networks["bfloat16"] = OneDNNNetwork(model, bf16=True)
    for name, network in networks.items():
        set_arrays(model, start)
        _, gradients = pass_both_ways(model, network, *draw(seed, 48, 8))
        distances = [difference(gradients[key], expected[key]) for key in names]
        medians[name] = float(np.median(distances))
        assert max(distances) < 1e-4 or name == "bfloat16"
    record_property("median distance to float64", medians)
    print(f"\n{family}, distance of gradients to float64: {medians}")
    assert medians["oneDNN"] <= 1.25 * medians["Paddle"]
    assert 1e-3 < medians.get("bfloat16", 0.01) < 0.35  # that of random directions is 1.4


def rounded(values):
    """Return float32 values rounded to bfloat16, ties to even: the upper half of the bits."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@NEEDS_BF16
@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 4)])
def test_products_in_bfloat16_round_their_factors_and_nothing_else(kernel, groups):
    """The reference multiplies rounded factors in float64."""
    geometry = Geometry(2, 12, 10, 64, 64, kernel, 1, groups, "symmetric", bf16=True)
    random = np.random.RandomState(0)
    shapes = geometry.in_shape, geometry.weight_shape, geometry.out_shape
    own = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    actual = usable._convolved(geometry, *map(paddle.to_tensor, own))
    x, weight, dy = (
        paddle.to_tensor(rounded(array).astype(np.float64), stop_gradient=False) for array in own
    )
    y = F.conv2d(x.transpose([0, 3, 1, 2]), weight, padding=kernel // 2, groups=groups)
    y = y.transpose([0, 2, 3, 1])
    for found, expected in zip(actual, (y, *paddle.grad(y, [x, weight], [dy])), strict=True):
        assert difference(found, expected.numpy()) < 1e-6


@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 6)])
def test_statistics_are_exact_where_the_mean_is_large(mean, kernel, groups):
    """Batch statistics whose mean is 100 deviations: the variance must not cancel."""
    layer = ConvBN(6, 6, kernel, groups=groups, padding="symmetric", bn_epsilon=1e-3, bn_momentum=0.25)
    weight = np.zeros(layer.conv.weight.shape, np.float32)
    for channel in range(6):
        weight[channel, channel if groups == 1 else 0, kernel // 2, kernel // 2] = 1
    layer.conv.weight.set_value(weight)
    layer.bn._mean.set_value(np.full(6, 2, np.float32))
    x = np.random.RandomState(0).normal(mean, 1, (8, 33, 31, 6)).astype(np.float32)
    y = conv_bn(layer, paddle.to_tensor(x)).numpy()
    wide = x.astype(np.float64)
    axes = (0, 1, 2)
    expected_mean, expected_variance = wide.mean(axes), wide.var(axes)
    np.testing.assert_allclose(layer.bn._mean.numpy(), 0.25 * 2 + 0.75 * expected_mean, rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(layer.bn._variance.numpy(), 0.25 + 0.75 * expected_variance, rtol=1e-6)
    normal = (wide - expected_mean) / np.sqrt(expected_variance + 1e-3)
    assert np.abs(y - normal).max() < 1e-6 * (mean + 1)


@pytest.mark.parametrize("name", ["EfficientNetB0", "EfficientNetLite0", "ResNeXt101_32x8d_wsl"])
def test_logits_are_the_published_implementations(name):
    network = OneDNNNetwork(build_filled(name))
    network.eval()
    found = {}
    for file in ("paddleclas", "timm", "efficientnet_lite_pytorch"):
        for shape, expected in read_golden(f"{file}.npz", name).items():
            found[file, shape] = relative_difference(network, shape, expected)
    print(f"\n{name} on oneDNN: {found}")
    assert found and max(found.values()) <= LIMIT


def losses_of(kernels, steps):
    state = make_state(partial(efficientnet, dropout=0.2, drop_connect=0.2), f"kernels={kernels}")
    data = (Batch(*draw_arrays(step, 64, 8)) for step in range(steps))
    return [train_step(state, data, 0.01, step).loss for step in range(steps)]


def test_the_first_losses_are_paddles():
    """Dropout and drop connect draw the same masks. More steps drift apart, as Paddle's own runs do with
    another number of threads."""
    losses = {kernels: losses_of(kernels, 5) for kernels in ("paddle", "onednn")}
    print(f"\nlosses {losses}")
    np.testing.assert_allclose(losses["onednn"], losses["paddle"], rtol=1e-6)


@pytest.mark.slow
def test_losses_of_20_steps_are_as_near_as_paddles_own_runs():
    """Twice as far as Paddle's runs with one and with two threads are from each other, at most."""
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_onednn import losses_of
print(losses_of(KERNELS, 20))
"""
    runs = [("paddle", "1"), ("paddle", "2"), ("onednn", "1")]
    one, two, own = (
        np.array(value_from(code.replace("KERNELS", repr(kernels)), OMP_NUM_THREADS=threads))
        for kernels, threads in runs
    )
    among_paddles, to_paddles = np.abs(two / one - 1), np.abs(own / one - 1)
    print(f"\nPaddle's with 1 and 2 threads {among_paddles}\noneDNN's to Paddle's {to_paddles}")
    assert to_paddles[:5].max() <= 1e-6
    assert to_paddles.max() <= 2 * among_paddles.max()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1), (7, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_depthwise_convolutions_of_small_images_are_paddles(padding, kernel, stride, size):
    paddle.seed(0)
    layer = ConvBN(6, 6, kernel, stride, groups=6, padding=padding, bn_epsilon=1e-3, bn_momentum=0.99)
    layer.bn.eval()  # statistics of so few values would amplify rounding
    x = paddle.randn([3, 6, *size])
    last = paddle.transpose(x, [0, 2, 3, 1])
    x.stop_gradient = last.stop_gradient = False
    parameters = [layer.conv.weight, layer.bn.weight, layer.bn.bias]
    expected = layer(x)
    factors = paddle.randn(expected.shape)
    actual = conv_bn(layer, last)
    results = paddle.grad((expected * factors).sum(), [x, *parameters])
    own = paddle.grad((actual * factors.transpose([0, 2, 3, 1])).sum(), [last, *parameters])
    np.testing.assert_allclose(actual.numpy(), expected.transpose([0, 2, 3, 1]).numpy(), atol=1e-5)
    np.testing.assert_allclose(own[0].numpy(), results[0].transpose([0, 2, 3, 1]).numpy(), atol=1e-5)
    for one, other in zip(own[1:], results[1:], strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("size", [2, 12])  # fewer pixels than channels, or more
@pytest.mark.parametrize(
    "options",
    [(1, F.swish, True, 0.0), (1, F.swish, False, 0.0), (4, F.swish, True, 0.5), (4, F.relu6, True, 0.0)],
    ids=["without expansion", "without gate", "drop connect", "relu6"],
)
def test_a_block_has_paddles_gradients(options, size):
    expansion, activation, has_gate, drop = options
    paddle.seed(0)
    conv = partial(ConvBN, padding="same", bn_epsilon=1e-3, bn_momentum=0.9)
    stage = MBConvStage(kernel_size=3, stride=1, expand_ratio=expansion, channels=8, repeats=1)
    block = MBConv(8, stage, 1, conv, activation, squeeze_excite=has_gate, drop_connect_rate=drop)
    x = paddle.randn([6, 8, size, size])
    last = paddle.transpose(x, [0, 2, 3, 1])
    x.stop_gradient = last.stop_gradient = False
    parameters = [parameter for parameter in block.parameters() if not parameter.stop_gradient]
    found = []
    for source, run in ((x, block), (last, partial(mbconv, block))):
        paddle.seed(1)  # of drop connect
        y = run(source)
        y = y if source is x else y.transpose([0, 3, 1, 2])
        factors = paddle.arange(y.size, dtype="float32").reshape(y.shape) / y.size
        dx, *others = paddle.grad((y * factors).sum(), [source, *parameters])
        found.append([y, dx if source is x else dx.transpose([0, 3, 1, 2]), *others])
    largest = max(float(own.abs().max()) for own in found[0])
    for expected, own in zip(*found, strict=True):
        np.testing.assert_allclose(own.numpy(), expected.numpy(), rtol=1e-4, atol=2e-6 * largest)


def test_training_mode_without_gradients_does_what_it_always_does():
    """Statistics move, and a block whose layers are all frozen drops branches."""
    conv = partial(ConvBN, padding="same", bn_epsilon=1e-3, bn_momentum=0.9)
    stage = MBConvStage(kernel_size=3, stride=1, expand_ratio=4, channels=8, repeats=1)
    block = MBConv(8, stage, 1, conv, F.swish, squeeze_excite=True, drop_connect_rate=0.0)
    x = paddle.randn([6, 8, 4, 4])
    with paddle.no_grad():
        for own in (block, partial(mbconv, block)):  # the second one moves them from where the first one left
            before = block.project.bn._mean.numpy().copy()
            own(x if own is block else paddle.transpose(x, [0, 2, 3, 1]))
            assert np.abs(block.project.bn._mean.numpy() - before).max() > 1e-6
        for layer in block.sublayers():
            layer.eval()
        block.drop_connect_rate = 0.5
        assert block.training
        paddle.seed(1)
        expected = block(x)
        paddle.seed(1)
        found = mbconv(block, paddle.transpose(x, [0, 2, 3, 1])).transpose([0, 3, 1, 2])
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)
    assert 0 < (np.abs((found - x).numpy()).max((1, 2, 3)) == 0).sum() < 6


@pytest.mark.parametrize("shape", [(2, 24, 24, 8), (3, 7, 11, 5), (1, 113, 1, 16), (4, 4, 4, 8)])
def test_statistics_of_a_tensor_in_parts(shape, monkeypatch):
    """Against numpy, in float64. Several parts, with several groups each, as large tensors have."""
    monkeypatch.setattr(norm, "CACHE", 2000)
    x = np.random.RandomState(0).normal(50, 1, shape).astype(np.float32)
    tensor = paddle.to_tensor(x)
    mean, variance = norm.Statistics(*shape)(tensor.data_ptr())
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=1e-6)


# As any layer of Paddle's


@pytest.mark.parametrize(
    "frozen",
    ["stem.*, blocks.0.*", "blocks.2.*", "'*.bn.*'", "'*.conv.weight'", "blocks.*, head.*"],
)
def test_frozen_parts_have_paddles_gradients(frozen):
    """Also where a trained part lies before a frozen one, whose batch norms use the running statistics."""
    found = []
    for kernels in ("paddle", "onednn"):
        state = make_state(efficientnet, f"train.freeze=[{frozen}]", f"kernels={kernels}")
        state.train_mode()
        images, labels = draw(3, 32, 8)
        loss = F.cross_entropy(state.network(images), labels)
        loss.backward()
        gradients = {
            name: parameter.grad.numpy()
            for name, parameter in state.model.named_parameters()
            if not parameter.stop_gradient
        }
        frozen_gradients = [p.grad for p in state.model.parameters() if p.stop_gradient]
        assert frozen_gradients == [None] * len(frozen_gradients)
        found.append(gradients | weights(state, "after/"))
    assert found[0].keys() == found[1].keys()
    largest = max(np.abs(array).max() for array in found[0].values())
    for name, expected in found[0].items():
        np.testing.assert_allclose(
            found[1][name], expected, rtol=1e-3, atol=1e-5 * largest, err_msg=f"{frozen} {name}"
        )


def test_images_have_gradients_too():
    paddle.seed(0)
    model = efficientnet()
    found = []
    for network in (model, OneDNNNetwork(model)):
        network.eval()
        images, labels = draw(0, 40, 4)
        images.stop_gradient = False
        F.cross_entropy(network(images), labels).backward()
        found.append(images.grad.numpy())
    assert difference(found[1], found[0]) < 1e-5


def test_a_step_has_the_same_bits_in_each_process():
    code = f"""
import sys, hashlib
sys.path.insert(0, {os.path.dirname(__file__)!r})
from two_ranks import SMALL, batches, make_state, train, weights
state = make_state(SMALL, "kernels=onednn")
train(state, batches(2, 4), 2)
arrays = weights(state)
print(repr(hashlib.sha256(b"".join(arrays[key].tobytes() for key in sorted(arrays))).hexdigest()))
"""
    assert value_from(code) == value_from(code)


def test_evaluation_takes_one_primitive_for_a_layer_and_sees_new_weights():
    model = build_model("EfficientNetB0_small", num_classes=4)
    fast, plain = EagerEngine(model, "onednn"), EagerEngine(model)
    images = draw(0, 32, 2)[0].numpy()
    for _ in range(2):
        assert difference(fast.run(images), plain.run(images)) < 1e-5
        before = fast.run(images)
        for layer in (layer.bn for layer in model.sublayers() if isinstance(layer, ConvBN)):
            layer._variance.set_value(layer._variance * 0.5)
            layer.bias.set_value(layer.bias + 0.25)
    assert difference(fast.run(images), before) > 0.1


def test_the_network_itself_computes_what_it_did():
    model = build_model("EfficientNetB0_small", num_classes=4)
    images, names = draw(0, 32, 2)[0], list(model.state_dict())
    model.eval()
    before = model(images).numpy()
    network = resolve_kernels("onednn", model).network(model)
    network.eval(), network(images)
    assert (model(images).numpy() == before).all() and list(model.state_dict()) == names
    assert difference(network.embed(images).numpy(), model.embed(images).numpy()) < 1e-5
    assert [id(p) for p in network.parameters()] == [id(p) for p in model.parameters()]


# Safe


@cache
def small():
    paddle.seed(0)
    return OneDNNNetwork(efficientnet())


def a_loss():
    small().train()
    images, labels = draw(0, 32, 4)
    return F.cross_entropy(small()(images), labels)


def test_a_weight_changed_between_the_passes_is_an_error_as_paddles_is():
    loss = a_loss()
    with paddle.no_grad():
        small().model.blocks[1].expand.conv.weight.scale_(1.0)
    with pytest.raises(ERRORS, match=r"\[48, 8, 1, 1\].*inplace.* version is"):
        loss.backward()


@pytest.mark.parametrize("activation", [None, F.swish, F.relu, F.relu6])
@pytest.mark.parametrize("changed", ["input", "output", "scale"])
def test_an_input_changed_between_the_passes_is_an_error(changed, activation):
    layer = ConvBN(4, 4, 1, activation=activation, padding="same", bn_epsilon=1e-3, bn_momentum=0.9)
    x = paddle.randn([2, 5, 5, 4]) * 2
    y = conv_bn(layer, x)
    loss = (y * 2).sum()
    with paddle.no_grad():
        {"input": x, "output": y, "scale": layer.bn.weight}[changed].scale_(2.0)
    if changed == "output" and activation in (None, F.swish):
        loss.backward()  # which needs no output
        return
    with pytest.raises(ERRORS, match="inplace"):
        loss.backward()


def test_values_that_are_set_are_those_that_the_gradient_sees():
    """set_value counts as no change, for Paddle's kernels too: both take the new weights."""
    found = []
    paddle.seed(0)
    model = efficientnet()
    start = arrays_of(model)
    for network in (model, OneDNNNetwork(model)):
        set_arrays(model, start)
        network.train()
        loss = F.cross_entropy(network(draw(0, 32, 4)[0]), draw(0, 32, 4)[1])
        weight = model.blocks[1].expand.conv.weight
        weight.set_value(weight.numpy() * 3)
        loss.backward()
        found.append(model.stem.conv.weight.grad.numpy())
        model.clear_gradients()
    assert difference(found[1], found[0]) < 1e-3


def test_a_kept_graph_is_refused():
    loss = a_loss()
    loss.backward(retain_graph=True)
    with pytest.raises(ERRORS, match="one backward pass.*retain_graph"):
        loss.backward()


def test_second_derivatives_are_refused():
    small().train()
    total = small()(draw(0, 32, 4)[0]).sum()
    with pytest.raises((*ERRORS, NotImplementedError), match="second derivatives.*create_graph"):
        paddle.grad(total, [small().model.stem.conv.weight], create_graph=True)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 3, 8, 8), np.float32),
        np.zeros((1, 3, 0, 8), np.float32),
        np.zeros((1, 3, 8, 8)),
        np.zeros((1, 4, 8, 8), np.float32),
        np.zeros((3, 8, 8), np.float32),
    ],
    ids=["no image", "no row", "float64", "four channels", "no batch"],
)
def test_other_images_are_refused(images):
    with pytest.raises(DataError, match="float32.*Received"):
        small()(paddle.to_tensor(images))


def test_a_view_is_copied_and_another_shape_refused():
    layer = ConvBN(4, 4, 1, padding="same", bn_epsilon=1e-3, bn_momentum=0.9)
    x = paddle.randn([2, 4, 5, 6])
    turned = x.transpose([0, 2, 3, 1])
    whole = paddle.to_tensor(turned.numpy())
    one, other = (conv_bn(layer, t).numpy() for t in (turned, whole))
    assert (one == other).all()
    with pytest.raises(ValueError, match="Expected.*Received"):
        conv_bn(layer, paddle.randn([2, 5, 6, 3]))
    with pytest.raises(TypeError, match="float32.*Received.*float64"):
        conv_bn(layer, whole.astype("float64"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 1), (1, 33)])
def test_single_pixels_and_single_images(family, count, size):
    model = FAMILIES[family]()
    network = OneDNNNetwork(model)
    for mode in (network.train, network.eval):
        mode()
        loss = F.cross_entropy(network(draw(0, size, count)[0]), draw(0, size, count)[1])
        loss.backward()
        assert np.isfinite(loss.item())
        assert all(np.isfinite(p.grad.numpy()).all() for p in model.parameters() if p.grad is not None)
    model.clear_gradients()


def test_threads_compute_the_same():
    network, images = small(), draw(0, 32, 4)[0]
    network.eval()
    expected = network(images).numpy()
    found, done = [], threading.Barrier(3)

    def work():
        done.wait()
        for _ in range(5):
            with paddle.no_grad():
                found.append(network(images).numpy())

    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(found) == 15
    assert all(difference(array, expected) < 1e-5 for array in found)
    assert all((array == found[0]).all() for array in found)


SIGNALS = """
import signal
import numpy as np
from ppcls.onednn.convolution import Geometry
from ppcls.onednn.convolve import convolution
from ppcls.onednn.tensors import address_of

own, random = convolution(Geometry(2, 2, 2, 320, 1280, 1, 1, 1, "same")), np.random.RandomState(0)
shapes = own.out_shape, own.weight_shape, own.in_shape
dy, weight, dx = (random.normal(size=shape).astype(np.float32) for shape in shapes)
signals = []
signal.signal(signal.SIGALRM, lambda *given: signals.append(given))
signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
while len(signals) < 2000:
    own.backward_data(*map(address_of, (dy, weight, dx)))
signal.setitimer(signal.ITIMER_REAL, 0)
print(own._data_product.name, flush=True)
"""


def test_signals_during_products_for_avx2_overwrite_nothing():
    """The kernel "gemm:jit" keeps a buffer's address in the stack pointer. What the system writes below it
    destroys the heap. pytest's own process has a stack for handlers, by faulthandler."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONFAULTHANDLER": ""}
    command = [sys.executable, "-c", SIGNALS]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False
    )
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["gemm:jit:f32"]), done.stderr[-2000:]


def test_each_thread_has_a_stack_for_signals():
    def run():
        found.append(has_signal_stack())
        convolution(Geometry(1, 4, 4, 8, 8, 1, 1, 1, "same")).forward(*addresses)
        found.append(has_signal_stack())

    found, tensors = [], [paddle.ones([128]) for _ in range(3)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False, True]


def test_a_fork_computes_the_same():
    """In a process of its own, whose other threads are not those of all tests before."""
    code = """
import os, signal
import numpy as np, paddle
from ppcls import build_model
from ppcls.onednn import resolve_kernels
model = build_model("EfficientNetB0_small", num_classes=3)
network = resolve_kernels("onednn", model).network(model)
network.eval()
images = paddle.to_tensor(np.random.RandomState(0).randn(2, 3, 32, 32).astype(np.float32))
with paddle.no_grad():
    expected = network(images).numpy()
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(int((network(images).numpy() != expected).any()))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert value_from(code) == 0


def test_shapes_that_change_every_time_leave_memory_level(monkeypatch):
    """With room for 16 shapes, in a thread of its own, which has no cache yet, and without oneDNN's cache."""
    monkeypatch.setattr(primitives, "CACHED", 16)
    capacity, found = c_int(), library.library()
    found.dnnl_get_primitive_cache_capacity(byref(capacity))
    assert capacity.value > 0
    layer = ConvBN(8, 8, 3, groups=8, activation=F.swish, padding="same", bn_epsilon=1e-3, bn_momentum=0.9)
    sizes = []

    def work():
        for number in range(150):
            x = paddle.ones([1, 3 + number, 4, 8])
            conv_bn(layer, x).sum().backward()
            sizes.append(resident())

    thread = threading.Thread(target=work)
    found.dnnl_set_primitive_cache_capacity(0)
    try:
        thread.start(), thread.join()
    finally:
        found.dnnl_set_primitive_cache_capacity(capacity.value)
    assert len(sizes) == 150
    growth = (sizes[-1] - sizes[75]) / 2**20
    print(f"\nresident {sizes[75] / 2**20:.0f} MiB, after 75 more shapes {growth:+.1f} MiB")
    assert growth < 5


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_graphs_that_are_dropped_leave_nothing():
    """relu keeps its output, which must not keep the graph that keeps it."""
    layer = ConvBN(4, 64, 1, activation=F.relu, padding="same", bn_epsilon=1e-3, bn_momentum=0.9)
    x, sizes = paddle.randn([8, 64, 64, 4]), []
    for _ in range(40):
        conv_bn(layer, x)
        sizes.append(resident())
    gc.collect()
    assert resident() - sizes[9] < 20 * 2**20  # one output has 8 MiB


# Choice


def test_an_error_of_the_library_is_an_exception():
    found = library.library()
    with pytest.raises(library.OneDNNError, match=r"memory_desc_create_with_tag returned 2, invalid argum"):
        library.create(
            "memory_desc", -1, library.dims((1,)), 3, 1, function="dnnl_memory_desc_create_with_tag"
        )
    assert found.dnnl_version().contents.major == library.MAJOR


@pytest.mark.parametrize(
    ("kernels", "name"),
    [
        ("auto", "oneDNN 3"),
        ("onednn", "oneDNN 3"),
        pytest.param("onednn-bf16", "oneDNN 3", marks=NEEDS_BF16),
        ("paddle", "Paddle's"),
    ],
)
def test_the_choice_is_said(kernels, name):
    state = make_state(SMALL, f"kernels={kernels}")
    assert state.kernels.name.startswith(name) and name in str(state.kernels)
    assert isinstance(state.network, OneDNNNetwork) == (name != "Paddle's")
    assert ("bf16" in str(state.kernels)) == (kernels == "onednn-bf16")


def test_what_it_cannot_run_falls_back_with_a_reason(monkeypatch):
    model = build_model("EfficientNetB0_small", num_classes=2)
    other = paddle.nn.Linear(2, 2)
    wide = build_model("EfficientNetB0_small", num_classes=2)
    wide.to(dtype="float64")
    bent = build_model("EfficientNetB0_small", num_classes=2)
    bent.head.activation = F.gelu
    synced = build_model("EfficientNetB0_small", num_classes=2)
    synced.head.bn = SyncBatchNorm2D(1280)
    networks = {"Linear": other, "float64": wide, "gelu": bent, "SyncBatchNorm2D": synced}
    for reason, network in networks.items():
        kernels = resolve_kernels("auto", network)
        assert kernels.name == PADDLE and reason in kernels.reason
        assert kernels.network(network) is network
        for requested in ("onednn", "onednn-bf16"):
            with pytest.raises(ConfigError, match=f"kernels={requested} .*{reason}.*-o kernels=auto"):
                resolve_kernels(requested, network)
    assert "train.amp" in resolve_kernels("auto", model, "train.amp=bf16").reason
    for replaced, reason in (("_self_test", "computes other values"), ("library", "cannot be loaded")):
        usable._fault.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(usable, replaced, partial(fail, reason))
            assert reason in resolve_kernels("auto", model).reason
        usable._fault.cache_clear()


def test_a_processor_without_bfloat16_is_refused_it():
    """As oneDNN sees it: the variable hides AMX from it."""
    code = """
from ppcls import build_model
from ppcls.errors import ConfigError
from ppcls.onednn import resolve_kernels
model = build_model("EfficientNetB0_small", num_classes=2)
try:
    found = str(resolve_kernels("onednn-bf16", model))
except ConfigError as error:
    found = str(error)
print((found, resolve_kernels("onednn", model).name))
"""
    refused, exact = value_from(code, ONEDNN_MAX_CPU_ISA="AVX2")
    assert "kernels=onednn-bf16" in refused and "AMX" in refused and "-o kernels=auto" in refused
    assert exact.startswith("oneDNN 3") and "bf16" not in exact


def fail(reason):
    if reason == "computes other values":
        return float("nan")
    raise library.OneDNNError(f"oneDNN {reason}")


def test_no_library_or_another_version_falls_back():
    code = """
from ppcls import build_model
from ppcls.onednn import library, resolve_kernels, usable
model, found = build_model("EfficientNetB0_small", num_classes=2), []
for name, value in (("FILE", "libs/none.so.3"), ("MAJOR", 4)):
    before = getattr(library, name)
    setattr(library, name, value)
    kernels = resolve_kernels("auto", model)
    found.append((kernels.name, kernels.reason))
    setattr(library, name, before)
    usable._fault.cache_clear()
found.append(resolve_kernels("auto", model).name)
print(found)
"""
    missing, another, found = value_from(code)
    assert missing[0] == another[0] == PADDLE and found.startswith("oneDNN 3")
    assert "none.so.3" in missing[1] and "supported: 4" in another[1]


def test_a_value_that_is_not_a_number_fails_the_self_test(monkeypatch):
    values_of = usable._values_of

    def spoiled(sample, forward, images):
        values = values_of(sample, forward, images)
        return values if forward is sample else [*values[:3], np.nan * values[3], *values[4:]]

    monkeypatch.setattr(usable, "_values_of", spoiled)
    assert not usable._self_test() < usable.TOLERANCE


def test_the_self_test_leaves_no_plans():
    usable._fault.cache_clear()
    assert resolve_kernels("onednn", efficientnet()).name.startswith("oneDNN")
    assert not primitives.PLANS.caches


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(
    "shape",
    [
        *[(28, 28, 5, 1), (14, 15, 5, 2), (8, 8, 5, 2), (7, 7, 5, 1), (5, 5, 5, 2), (4, 4, 5, 1)],
        *[(2, 3, 3, 1), (1, 1, 5, 1)],
    ],
)
def test_the_gradient_of_depthwise_weights_in_parts(shape, padding):
    """Against sums in float64. Kernels of 5 columns are taken apart, and taps that see no pixel are zero."""
    height, width, kernel, stride = shape
    own = Geometry(3, height, width, 16, 16, kernel, stride, 16, padding)
    if 5 < width:
        parts = convolution(own)._parts
        assert parts and all(part.primitive.name.startswith(FAST) for part in parts)
    x, dy, found = paddle.randn(own.in_shape), paddle.randn(own.out_shape), paddle.full(own.weight_shape, 7.0)
    convolution(own).backward_weights(x.data_ptr(), dy.data_ptr(), found.data_ptr())
    (top, left), _ = own.pads
    padded = np.pad(x.numpy().astype(float), ((0, 0), (top, kernel), (left, kernel), (0, 0)))
    rows, columns = (stride * length for length in own.out_shape[1:3])
    expected = [
        [
            (padded[:, a : a + rows : stride, b : b + columns : stride] * dy.numpy()).sum((0, 1, 2))
            for b in range(kernel)
        ]
        for a in range(kernel)
    ]
    expected = np.array(expected).transpose(2, 0, 1)[:, None]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=5e-6 * np.abs(expected).max())
