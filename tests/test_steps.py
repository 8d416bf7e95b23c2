"""Options of a training step: gathered batches, clipping, recomputed blocks, bad losses."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import two_ranks
from helpers import HAS_ONEDNN, ROOT, on_two_ranks, run_python
from paddle import nn
from two_ranks import SMALL, Normed, Plain, are_equal, batches, halves, make_state, spoil, train, weights

from ppcls.data.label_sets import LabelSets
from ppcls.errors import ConfigError, PpclsError
from ppcls.evaluation.metrics import log_probabilities
from ppcls.training import step as step_module
from ppcls.training.length import global_batch
from ppcls.training.step import add_gradients, train_step

NEEDS_ONEDNN = pytest.mark.skipif(not HAS_ONEDNN, reason="this Paddle comes without oneDNN's library")


def test_two_processes_train_as_one(tmp_path):
    """float64, 6 steps: sync_bn with its statistics, and accumulated gradients. Paddle's own batch norm takes
    its momentum as float32, so statistics differ by 2e-7, the rest by less than 1e-9. Also what must hold
    on each rank: see two_ranks.checks_of_a_rank."""
    launch = on_two_ranks(tmp_path / "log")
    run = run_python(*launch, ROOT / "tests/two_ranks.py", tmp_path)
    assert run.returncode == 0, (tmp_path / "log/workerlog.0").read_text()[-3000:]
    one, two = two_ranks.whole_batches(), np.load(tmp_path / "two.npz")
    assert {"sync_bn/first.bn._variance", "classifier1/fc.weight"} <= one.keys()
    for key, expected in one.items():
        difference = np.linalg.norm(two[key] - expected) / np.linalg.norm(expected)
        limit = 1e-6 if key.endswith(("._mean", "._variance")) else 1e-9
        assert expected.dtype == np.float64 and difference <= limit, f"{key}: {difference:.1e}"


def test_sync_bn_of_one_process_is_paddles():
    state = make_state(Normed, "train.sync_bn=true")
    assert type(state.model.first.bn) is nn.BatchNorm2D


def test_gathered_batches_make_the_update_of_one():
    whole, gathered = (make_state(Plain, f"train.accumulate={count}") for count in (1, 2))
    assert (global_batch(whole.config), global_batch(gathered.config)) == (32, 64)
    assert (
        gathered.peak_lr == 2 * whole.peak_lr and gathered.steps_per_epoch == whole.steps_per_epoch // 2 == 12
    )
    data = list(batches(3, 8))
    train(whole, data, 3)
    train(gathered, [half for batch in data for half in halves(batch)], 3)
    for key, array in weights(whole).items():
        np.testing.assert_allclose(weights(gathered)[key], array, rtol=1e-5, atol=1e-7, err_msg=key)


def test_gradients_are_clipped_before_the_update():
    options = ["optim.momentum=0", "optim.weight_decay=0", "optim.clip_norm=0.01"]
    state = make_state(Plain, *options)
    before = weights(state)
    train(state, batches(1, 8), 1, rate=0.5)
    moved = sum(np.square(array - before[key]).sum() for key, array in weights(state).items())
    assert np.sqrt(moved) == pytest.approx(0.5 * 0.01, rel=1e-3)


@pytest.mark.parametrize("frozen", ["", "stem.*"])
def test_recomputed_blocks_have_the_same_gradients_and_statistics(frozen):
    results = []
    for flag in ("true", "false"):
        state = make_state(SMALL, f"train.recompute={flag}", f"train.freeze=[{frozen}]")
        assert state.model.blocks[9].drop_connect_rate > 0.1
        paddle.seed(5)
        add_gradients(state, next(batches(1, 4)))
        gradients = {
            key: parameter.grad.numpy()
            for key, parameter in state.model.named_parameters()
            if not parameter.stop_gradient
        }
        assert len(gradients) > 90 and all(np.abs(array).max() > 0 for array in gradients.values())
        results.append(gradients | weights(state, "after/"))
    assert results[0].keys() == results[1].keys() and are_equal(*results)
    assert not (results[0]["after/blocks.3.expand.bn._mean"] == 0).all()


@pytest.mark.parametrize("kernels", [pytest.param("onednn", marks=NEEDS_ONEDNN), "paddle"])
def test_recomputed_blocks_keep_less(kernels):
    """Tensors that the backward pass would find, counted by the blocks' outputs that ask for gradients."""
    state = make_state(SMALL, "train.recompute=true", f"kernels={kernels}")
    seen = []
    for block in state.network.blocks:
        if kernels == "paddle":
            block.project.register_forward_post_hook(lambda _1, _2, out: seen.append(out.stop_gradient))
        else:
            block.run = recorded(block.run, seen)
    state.network(paddle.randn([2, 3, 32, 32]))
    assert seen == [True] * 16


def recorded(run, seen):
    def run_and_record(block, x):
        out = run(block, x)
        seen.append(out.stop_gradient)
        return out

    return run_and_record


def test_an_update_that_is_not_finite_is_left_out_without_a_trace():
    good, other = batches(2, 4)
    states = [make_state(SMALL, "train.on_nan=skip", "train.ema_decay=0.9") for _ in range(2)]
    assert train(states[0], [good, spoil(good), other], 3) == [True, False, True]
    train_step(states[1], iter([good]), 0.05, 0)
    train_step(states[1], iter([other]), 0.05, 2)
    assert are_equal(*map(weights, states))
    assert states[0].ema.updates == 2


def test_many_of_them_in_a_row_end_the_run():
    state = make_state(Plain, "train.on_nan=skip")
    (good,) = batches(1, 4)
    assert train(state, [spoil(good)] * 9 + [good] + [spoil(good)] * 9, 19).count(True) == 1
    with pytest.raises(PpclsError, match="nan at step 19, 10 times"):
        train_step(state, iter([spoil(good)]), 0.05, 19)


def test_the_run_ends_where_none_is_left_out():
    state = make_state(Plain)
    with pytest.raises(PpclsError, match="loss is nan at step 0.* 0.05.*optim.lr"):
        train(state, map(spoil, batches(1, 4)), 1)


class Steep(Plain):
    """A finite loss with gradients that are not: the root's slope at 0 is infinite."""

    def forward(self, x):
        return paddle.sqrt(super().forward(x) * 0)


def test_gradients_that_are_not_finite_count_as_well():
    state = make_state(Steep, "train.on_nan=skip")
    before = weights(state)
    assert train(state, batches(1, 4), 1) == [False]
    assert are_equal(weights(state), before)
    for options in ((), ("optim.clip_norm=1",)):
        state = make_state(Steep, *options)
        before = weights(state)
        with pytest.raises(PpclsError, match="norm .* nan at step 0"):
            train(state, batches(1, 4), 1)
        assert are_equal(weights(state), before)


def test_the_average_is_what_is_evaluated_and_saved():
    state = make_state(Normed, "train.ema_decay=0.9")
    start = weights(state)
    train(state, batches(3, 4), 3)
    own, averages = weights(state), {key: t.numpy().copy() for key, t in state.ema.state_dict().items()}
    with state.weights_to_save():
        assert are_equal(weights(state), averages)
    assert are_equal(weights(state), own)
    assert all((own[key] != averages[key]).any() and (start[key] != averages[key]).any() for key in own)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_is_refused_on_a_cpu(amp):
    if paddle.get_device() != "cpu":
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=f"train.amp .*Received: {amp}"):
        make_state(Plain, f"train.amp={amp}")


class Halved(Plain):
    """Its logits are bfloat16, as with train.amp. Paddle casts nothing on a CPU, whatever auto_cast says."""

    def forward(self, x):
        return super().forward(x).astype("bfloat16")


@pytest.mark.parametrize(
    ("loss", "class_weights"), [("softmax", [1, 1, 1]), ("softmax", [0.3, 1.7, 1.1]), ("binary", [1, 1, 1])]
)
def test_the_loss_of_label_sets_is_in_float32_whatever_the_network_computes_in(
    loss, class_weights, monkeypatch
):
    """Shares of 1/3 and weights would lose their digits in bfloat16. The sums are numpy's, in float64."""
    state = make_state(Halved, f"train.loss={loss}", "train.label_smoothing=0.1")
    state.class_weights = None if loss == "binary" else paddle.to_tensor(class_weights, "float32")
    places = []

    @contextmanager
    def autocast():
        places.append("inside")
        yield
        places.append("outside")

    mean_at = step_module._mean_at
    monkeypatch.setattr(state.precision, "autocast", autocast)
    monkeypatch.setattr(step_module, "_mean_at", lambda *a: places.append("loss") or mean_at(*a))
    (batch,) = batches(1, 8)
    sets = LabelSets.of_sizes([0, 1, 2, 1, 0, 2, 0, 1, 0, 1, 2, 2, 1], [3, 1, 2, 1, 1, 3, 1, 1])
    labels, shares = sets.targets(np.arange(8))
    shares = (shares > 0).astype(np.float32) if loss == "binary" else shares
    found = add_gradients(state, batch._replace(labels=labels, shares=shares))
    assert places == ["inside", "outside", "loss"] and state.model.fc.weight.grad.dtype == paddle.float32

    logits = state.model(paddle.to_tensor(batch.images)).astype("float64").numpy()
    targets = np.zeros((8, 3))
    np.add.at(targets, (np.arange(8)[:, None], labels), shares)
    targets *= class_weights
    targets = 0.9 * targets + 0.1 * targets.sum(1, keepdims=True) / 3
    if loss == "binary":
        expected = (np.logaddexp(0, logits) - targets * logits).mean()
    else:
        expected = -(targets * log_probabilities(logits)).sum(1).mean()
    assert found == pytest.approx(expected, rel=2e-6)


@pytest.mark.skipif(not paddle.get_device().startswith("gpu"), reason="needs a GPU")
@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains_nearly_as_float32(amp, level):
    options = [["train.amp=null"], [f"train.amp={amp}", f"train.amp_level={level}", "optim.clip_norm=1e3"]]
    losses = []
    for chosen in options:
        state = make_state(Normed, *chosen)
        data = batches(5, 8)
        losses.append([train_step(state, data, 0.05, step).loss for step in range(5)])
        assert state.model.fc.weight.dtype == paddle.float32
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.03)


def test_each_rank_step_and_batch_has_random_numbers_of_its_own(monkeypatch):
    """Of dropout and drop connect; the same ones again after a resume."""
    seeds = []
    monkeypatch.setattr(paddle, "seed", seeds.append)

    def draw():
        seeds.clear()
        for seed, rank, step, part in np.ndindex(2, 2, 6, 2):
            train = SimpleNamespace(accumulate=2)
            config = SimpleNamespace(seed=seed, train=train)
            step_module._seed(SimpleNamespace(config=config, rank=rank, steps_per_epoch=3), step, part)
        return list(seeds)

    first, second = draw(), draw()
    assert first == second and len(set(first)) == 2 * 2 * 6 * 2


def test_the_classifier_is_trained_first_and_alone():
    options = ["train.freeze_epochs=2", "train.start_from=pretrained", "train.freeze=[second.*]"]
    state = make_state(Normed, *options, "train.ema_decay=0.9")
    start, changed = weights(state), []
    for epoch in range(4):
        before, state.progress.epoch = weights(state), epoch
        state.model.eval()  # as after an evaluation
        state.train_mode()
        assert (state.ema is None) == (epoch < 2)
        train(state, batches(2, 4), 2)
        changed.append({name for name, array in weights(state).items() if (array != before[name]).any()})
        assert state.model.training and state.model.fc.training
    assert changed[:2] == [{"fc.weight", "fc.bias"}] * 2
    assert changed[2] == changed[3] == {name for name in start if not name.startswith("second.")}
    assert state.ema.updates == 4


def test_a_step_of_the_classifier_goes_back_no_further():
    state = make_state(SMALL, "train.freeze_epochs=1", "train.start_from=pretrained")
    state.train_mode()
    kept = []
    state.local.blocks[-1].register_forward_post_hook(lambda _block, _in, out: kept.append(out.stop_gradient))
    train(state, batches(1, 2), 1)
    assert kept == [True] and not state.model.blocks[-1].training


def test_a_classifier_that_is_frozen_cannot_be_trained_first():
    with pytest.raises(ConfigError, match=r"train.freeze_epochs .*train.freeze.*\['fc\.\*'\]"):
        make_state(Plain, "train.freeze_epochs=1", "train.start_from=pretrained", "train.freeze=[fc.*]")


def test_a_frozen_part_keeps_its_weights_and_its_statistics():
    state = make_state(Normed, "train.freeze=[first.*]")
    start = {name: tensor.numpy().copy() for name, tensor in state.model.state_dict().items()}
    state.model.eval()  # as after an evaluation
    state.train_mode()
    assert train(state, batches(2, 4), 2) == [True, True]
    now = {name: tensor.numpy() for name, tensor in state.model.state_dict().items()}
    changed = {name for name in now if not np.array_equal(now[name], start[name])}
    assert changed == {name for name in now if not name.startswith("first.")}
