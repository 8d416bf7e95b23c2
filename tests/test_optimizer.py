"""The pieces of a recipe: updates as torch and timm make them, rates, averages, what is frozen."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn

from ppcls import build_model
from ppcls.config import OptimConfig
from ppcls.errors import ConfigError, PpclsError
from ppcls.training.ema import ModelEma
from ppcls.training.optimizer import (
    build_optimizer,
    clip_gradients,
    load_optimizer_state,
    optimizer_state,
    trainable,
)
from ppcls.training.parameters import batch_norms, freeze, matching
from ppcls.training.schedule import learning_rate

GOLDEN = Path(__file__).parent / "golden"
TORCH = dict(np.load(GOLDEN / "training.npz"))
RATES = json.loads((GOLDEN / "training_schedules.json").read_text())


class Tiny(nn.Layer):
    """The parameters of tests/golden/make_training.py."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 1)
        self.norm = nn.BatchNorm2D(4)
        self.fc = nn.Linear(4, 2)
        for name, parameter in self.named_parameters():
            if not parameter.stop_gradient:
                parameter.set_value(TORCH[f"start/{name}"])

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).mean([2, 3]))

    def take_gradients(self, step):
        pairs = [
            (parameter, paddle.to_tensor(TORCH[f"gradients/{name}"][step]))
            for name, parameter in self.named_parameters()
            if not parameter.stop_gradient
        ]
        sum((parameter * gradient).sum() for parameter, gradient in pairs).backward()


CONFIGS = {
    "rmsprop": OptimConfig(name="rmsprop", weight_decay=0.02, lr_factors={"fc.*": 10.0}),
    "sgd": OptimConfig(name="sgd", weight_decay=0.02, lr_factors={"fc.*": 10.0}),
    "nesterov": OptimConfig(name="sgd", nesterov=True, weight_decay=0.02, lr_factors={"fc.*": 10.0}),
    "adamw": OptimConfig(name="adamw", betas=(0.8, 0.99), weight_decay=0.02, lr_factors={"fc.*": 10.0}),
}


def take_steps(model, optimizer, steps):
    for step in steps:
        model.take_gradients(step)
        optimizer.set_lr(0.05 / (1 + step))
        optimizer.step()
        optimizer.clear_grad()
        yield step


@pytest.mark.parametrize("name", CONFIGS)
def test_updates_are_those_of_torch_and_timm(name):
    model = Tiny()
    optimizer = build_optimizer(CONFIGS[name], model, 0.05)
    for step in take_steps(model, optimizer, range(20)):
        for key, parameter in model.named_parameters():
            if not parameter.stop_gradient:
                expected = TORCH[f"{name}/{key}"][step]
                np.testing.assert_allclose(
                    parameter.numpy(), expected, rtol=1e-5, atol=2e-6, err_msg=f"{key}, {step}"
                )


@pytest.mark.parametrize("name", CONFIGS)
def test_an_optimizer_goes_on_bit_for_bit_from_its_state(name):
    def state_of(tensors):
        return {key: tensor.numpy().copy() for key, tensor in tensors.items()}

    model = Tiny()
    optimizer = build_optimizer(CONFIGS[name], model, 0.05)
    list(take_steps(model, optimizer, range(3)))
    weights, state = state_of(model.state_dict()), state_of(optimizer_state(optimizer, model))
    assert {key.rpartition(".")[0] for key in state} == {
        key for key, parameter in model.named_parameters() if not parameter.stop_gradient
    }
    list(take_steps(model, optimizer, range(3, 6)))

    other = Tiny()  # whose parameters have other names in Paddle
    other.set_state_dict(weights)
    again = build_optimizer(CONFIGS[name], other, 0.05)
    load_optimizer_state(again, other, {key: paddle.to_tensor(array) for key, array in state.items()})
    list(take_steps(other, again, range(3, 6)))
    for key, tensor in model.state_dict().items():
        assert (tensor.numpy() == other.state_dict()[key].numpy()).all(), key
    last = state_of(optimizer_state(again, other))
    assert all(
        (array == last[key]).all() for key, array in state_of(optimizer_state(optimizer, model)).items()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("fc.weight.velocity_0"), "fc.weight.velocity_0 "),
        (lambda state: state.update({"fd.weight.velocity_0": paddle.zeros([1])}), "fd.weight.velocity_0 "),
        (
            lambda state: state.update({"fc.bias.velocity_0": paddle.zeros([3])}),
            r"fc.bias.velocity_0 .*\[2\].*Received: \[3\]",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, words):
    model = Tiny()
    optimizer = build_optimizer(CONFIGS["sgd"], model, 0.05)
    list(take_steps(model, optimizer, range(1)))
    state = optimizer_state(optimizer, model)
    change(state)
    other = Tiny()
    with pytest.raises(PpclsError, match=words):
        load_optimizer_state(build_optimizer(CONFIGS["sgd"], other, 0.05), other, state)


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_clipping_is_torchs(limit):
    model = Tiny()
    model.take_gradients(0)
    parameters = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    norm = clip_gradients(parameters, limit)
    assert norm == pytest.approx(float(TORCH[f"clip_{limit:g}/norm"]), rel=1e-6)
    for key, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            expected = TORCH[f"clip_{limit:g}/{key}"]
            np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("schedule", "options"), [("exponential", {}), ("step", {"decay_epochs": 6.0}), ("cosine", {})]
)
def test_rates_are_those_of_timm(schedule, options):
    config = OptimConfig(schedule=schedule, warmup_epochs=5, **options)
    rates = [learning_rate(config, 1.0, step, steps_per_epoch=10, steps=200) for step in range(200)]
    assert rates[50:] == pytest.approx(RATES[schedule][50:], rel=1e-12)
    assert rates[:49] == pytest.approx(RATES[schedule][1:50])  # timm's first step has the rate 0
    assert rates[49] == 1.0


@pytest.mark.parametrize("tenths", [24, 11])
def test_a_stair_ends_at_its_step_exactly(tenths):
    """33 epochs are 30 stairs of 1.1, though 33 / 1.1 is a little less."""
    config = OptimConfig(schedule="exponential", decay_epochs=tenths / 10)
    for steps_per_epoch in (1, 7, 10, 625, 5004):
        for stair in range(1, 150):
            first = math.ceil(Fraction(tenths, 10) * steps_per_epoch * stair)
            before, after = (
                learning_rate(config, 1.0, step, steps_per_epoch, 350 * steps_per_epoch)
                for step in (first - 1, first)
            )
            assert before > after * 1.01 and math.log(after, 0.97) >= stair - 1e-6


def test_the_average_follows_its_formula_and_steps_aside():
    paddle.seed(0)
    model = Tiny()
    ema = ModelEma(model, 0.3)
    expected = {key: parameter.numpy().astype(np.float64) for key, parameter in model.named_parameters()}
    assert set(expected) == set(model.state_dict())
    for update in range(1, 7):
        for parameter in model.parameters():
            parameter.set_value(paddle.randn(parameter.shape))
        ema.update()
        decay = min(0.3, (1 + update) / (10 + update))  # 2/11, 3/12, 4/13, then 0.3
        for key, parameter in model.named_parameters():
            expected[key] = decay * expected[key] + (1 - decay) * parameter.numpy()
    own = {key: parameter.numpy().copy() for key, parameter in model.named_parameters()}
    with pytest.raises(KeyError), ema.swapped():
        for key, parameter in model.named_parameters():
            np.testing.assert_allclose(parameter.numpy(), expected[key], rtol=1e-5, atol=1e-6, err_msg=key)
        raise KeyError("an evaluation that fails")
    for key, parameter in model.named_parameters():
        assert (parameter.numpy() == own[key]).all()
        np.testing.assert_allclose(ema.state_dict()[key].numpy(), expected[key], rtol=1e-5, atol=1e-6)


def test_averages_go_on_from_their_state():
    models = [Tiny(), Tiny()]
    first, second = (ModelEma(model, 0.9) for model in models)
    models[0].fc.bias.set_value(paddle.ones([2]))
    first.update()
    second.load_state_dict(first.state_dict(), first.updates)
    models[1].fc.bias.set_value(paddle.ones([2]))
    for ema in (first, second):
        ema.update()
    assert (first.averages["fc.bias"].numpy() == second.averages["fc.bias"].numpy()).all()
    state = first.state_dict()
    state.pop("norm._mean")
    with pytest.raises(PpclsError, match="norm._mean"):
        second.load_state_dict(state, 2)


@pytest.fixture(scope="module")
def small():
    paddle.seed(0)
    return build_model("EfficientNetB0_small", num_classes=3, drop_connect=0.2)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("fcc.*", "fc.*"), ("block.*", "blocks.*"), ("stem.conv", "stem.conv.*"), ("fc.wieght", "fc.weight")],
)
def test_a_pattern_that_matches_nothing_gets_the_nearest_name(small, pattern, near):
    with pytest.raises(ConfigError) as caught:
        freeze(small, [pattern])
    assert all(part in str(caught.value) for part in ("train.freeze", repr(pattern), f" {near}?"))
    with pytest.raises(ConfigError, match="optim.lr_factors"):
        build_optimizer(OptimConfig(lr_factors={pattern: 2.0}), small, 0.1)


def test_the_last_pattern_decides_the_factor():
    model = Tiny()
    config = OptimConfig(momentum=0.0, weight_decay=0.0, lr_factors={"fc.*": 10.0, "*.bias": 2.0})
    list(take_steps(model, build_optimizer(config, model, 0.05), range(1)))
    for key, factor in {"fc.weight": 10, "fc.bias": 2, "conv.weight": 1, "norm.bias": 2}.items():
        expected = TORCH[f"start/{key}"] - 0.05 * factor * TORCH[f"gradients/{key}"][0]
        np.testing.assert_allclose(
            dict(model.named_parameters())[key].numpy(), expected, rtol=1e-5, atol=1e-6
        )


def test_freezing_everything_is_refused():
    with pytest.raises(ConfigError, match="train.freeze"):
        freeze(Tiny(), ["*"])


def test_frozen_blocks_stay_as_they_are_and_keep_no_activations():
    model = build_model("EfficientNetB0_small", num_classes=3, drop_connect=0.2)
    frozen = freeze(model, ["stem.*", "blocks.*"])
    optimizer = build_optimizer(OptimConfig(), model, 0.1)
    start = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}
    model.train()
    for layer in frozen:
        layer.eval()
    assert model.head.bn.training and not model.stem.bn.training and not model.blocks[3].training
    features = model.blocks[0](model.stem(paddle.randn([2, 3, 32, 32])))
    assert features.stop_gradient  # so there is nothing to go back through
    model(paddle.randn([2, 3, 32, 32])).sum().backward()
    optimizer.step()
    changed = {key.split(".")[0] for key, t in model.state_dict().items() if (t.numpy() != start[key]).any()}
    assert changed == {"head", "fc"}
    assert (model.head.bn._mean.numpy() != start["head.bn._mean"]).any()


def test_statistics_may_move_where_weights_are_frozen():
    """FixRes: only the classifier is trained, and the last batch norm sees the new size."""
    model = build_model("EfficientNetB0_small", num_classes=3)
    frozen = freeze(model, ["stem.*", "blocks.*", "head.conv.*", "head.bn.weight", "head.bn.bias"])
    model.train()
    for layer in frozen:
        layer.eval()
    start = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}
    model(paddle.randn([2, 3, 32, 32]))
    changed = {key for key, tensor in model.state_dict().items() if (tensor.numpy() != start[key]).any()}
    assert changed == {"head.bn._mean", "head.bn._variance"}


def test_the_patterns_of_the_docs_are_fixres_for_the_resnexts():
    text = (GOLDEN.parent.parent / "docs/usage.md").read_text()
    patterns = yaml.safe_load(re.search(r"^ +freeze: (\[.*?\])$", text, re.MULTILINE | re.DOTALL).group(1))
    with paddle.LazyGuard():
        model = build_model("ResNeXt101_32x8d_wsl")
    frozen = freeze(model, patterns)
    assert set(trainable(model)) == {"fc.weight", "fc.bias"}
    assert [norm for norm in batch_norms(model) if norm not in frozen] == [model.blocks[32].expand.bn]


def test_patterns_are_those_of_a_shell():
    names = ["blocks.1.a", "blocks.10.a", "blocks.2.a"]
    assert matching("blocks.1?.*", names, "x") == ["blocks.10.a"]
    assert matching("blocks.[12].*", names, "x") == ["blocks.1.a", "blocks.2.a"]
