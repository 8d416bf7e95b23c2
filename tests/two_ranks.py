"""Computations that test_steps.py makes with one process and with two. As a script, one of two ranks:
two_ranks.py OUT, or two_ranks.py OUT ACCIDENT for test_ranks.py."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from helpers import draw_classes, predictor_of
from paddle import nn

from ppcls import build_model, distributed
from ppcls.architectures.blocks import ConvBN, global_average
from ppcls.build import Network
from ppcls.commands import run
from ppcls.config import AugmentConfig
from ppcls.config_files import parse_config
from ppcls.data.dataset import Dataset
from ppcls.data.files import Files
from ppcls.data.label_sets import LabelSets
from ppcls.data.loader import Batch, load_batches, train_batch_indices
from ppcls.data.sampling import repeat_factors
from ppcls.data.transforms import EvalTransform, TrainTransform
from ppcls.errors import DataError, PpclsError
from ppcls.evaluation.evaluate import evaluate
from ppcls.evaluation.label_metrics import average_precision
from ppcls.preprocessing import Preprocessing
from ppcls.training.batches import count_steps, train_batches
from ppcls.training.checkpoint import read_state, write_state
from ppcls.training.loop import Trainer
from ppcls.training.state import TrainState
from ppcls.training.step import Requests, train_step

SMALL = partial(build_model, "EfficientNetB0_small", num_classes=3)


class Normed(nn.Layer):
    """Batch norms each between a convolution and an activation, so that nothing is zero but for rounding."""

    def __init__(self):
        super().__init__()
        conv_bn = partial(ConvBN, activation=F.swish, padding="same", bn_epsilon=1e-3, bn_momentum=0.9)
        self.first = conv_bn(3, 8, 3, 2)
        self.second = conv_bn(8, 8, 3, groups=8)
        self.third = conv_bn(8, 6, 1)
        self.fc = nn.Linear(6, 3)

    def embed(self, x):
        return global_average(self.third(self.second(self.first(x))))

    def forward(self, x):
        return self.fc(self.embed(x))


class Named(Normed):
    model_name, num_classes = "EfficientNetB0_small", 3


class Plain(nn.Layer):
    """Without batch norm, so that it matters to nobody how images are grouped."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(paddle.tanh(self.conv(x)).mean([2, 3]))


def make_state(build, *overrides):
    """The state of a run with 800 images, its network drawn from seed 0."""
    config = parse_config({"model": {"name": "EfficientNetB0_small", "num_classes": 3}}, overrides)
    paddle.seed(0)
    model = build()
    model.train()
    return TrainState(config, model, count_steps(config, 800))


def batches(steps, size, dtype="float32", seed=0):
    """Every process draws all images and takes its share: `size` of each global batch."""
    rank, world_size = distributed.rank(), distributed.world_size()
    random = np.random.RandomState(seed)
    for _ in range(steps):
        images = random.normal(0, 1, (size * world_size, 3, 32, 32)).astype(dtype)
        labels = random.randint(0, 3, size * world_size)
        mine = slice(rank * size, (rank + 1) * size)
        yield Batch(images[mine], np.arange(size), labels[mine], [])


def train(state, data, steps, rate=0.05):
    """Returns whether each step was an update."""
    data = iter(data)
    return [train_step(state, data, rate, step).images > 0 for step in range(steps)]


def weights(state, prefix=""):
    return {f"{prefix}{key}": tensor.numpy().copy() for key, tensor in state.model.state_dict().items()}


def whole_batches():
    """Weights after steps of 8 images, however many processes share them: with batch norm over all of them,
    and without any, where two processes gather their images in two parts."""
    world_size = distributed.world_size()
    paddle.set_default_dtype("float64")
    try:
        state = make_state(Normed, "train.sync_bn=true")
        train(state, batches(6, 8 // world_size, "float64"), 6)
        found = weights(state, "sync_bn/")
        state = make_state(Plain, f"train.accumulate={world_size}")
        data = batches(3, 8 // world_size, "float64")
        train(state, data if world_size == 1 else (half for batch in data for half in halves(batch)), 3)
        found |= weights(state, "accumulate/")
        state = make_state(Plain, "train.label_smoothing=0.1")
        state.class_weights = paddle.to_tensor([0.25, 0.75, 2.0])
        train(state, batches(3, 8 // world_size, "float64"), 3)
        return found | weights(state, "class_weights/") | classifier_first(8 // world_size)
    finally:
        paddle.set_default_dtype("float32")


def classifier_first(size):
    """Weights after an update of the classifier alone, and after two of everything."""
    options = ["train.freeze_epochs=1", "train.start_from=pretrained"]
    state = make_state(Plain, *options)
    data, found = batches(3, size, "float64"), {}
    for epoch, steps in enumerate((1, 2)):
        state.progress.epoch = epoch
        state.train_mode()
        train(state, data, steps)
        found |= {
            k: array for k, array in weights(state, f"classifier{epoch}/").items() if epoch or "fc" in k
        }
    return found


def halves(batch):
    middle = len(batch.labels) // 2
    for part in (slice(0, middle), slice(middle, None)):
        yield Batch(batch.images[part], batch.indices[part], batch.labels[part], [])


def spoil(batch):
    return batch._replace(images=batch.images * np.float32("nan"))


def are_equal(first, second):
    return all((first[key] == second[key]).all() for key in second)


def checks_of_a_rank(folder):
    """What must hold on each of two ranks, as a dict of truths."""
    good, other = batches(2, 2)
    bad = spoil(good) if distributed.rank() == 1 else good
    with_bad = make_state(SMALL, "train.on_nan=skip")
    done = train(with_bad, [good, bad, other], 3)
    without = make_state(SMALL, "train.on_nan=skip")
    train_step(without, iter([good]), 0.05, 0)
    train_step(without, iter([other]), 0.05, 2)
    return {
        "all ranks end the run": ends(make_state(SMALL), bad),
        "all ranks leave the update out": done == [True, False, True],
        "what was left out has left no trace": are_equal(weights(with_bad), weights(without)),
        "sync_bn leaves alone what is frozen": left_alone() == {"first.conv.weight", "second.bn.weight"},
        "recomputed blocks train alike": are_equal(*recomputed_or_not()),
        "a signal to one rank is known to all": knows_of_a_signal(good),
        "a run resumes from a state within an epoch": are_equal(*resumed_or_not(folder)),
        "so they do with sync_bn": are_equal(*recomputed_or_not("train.sync_bn=true")),
        "their batches are those of one process": are_equal(*shared_or_whole(Path(folder) / "pictures")),
        "their average precision is that of all images": are_equal(*precision_of(Path(folder) / "pictures")),
        "their unreadable images are counted together": list(count_unreadable(Path(folder) / "pictures"))
        == [[1, 5, 9], "3 images", "3 images"],
    }


SPEC = Preprocessing(32, 32, "bilinear", False, (0.5,) * 3, (0.5,) * 3)


def pictures_in(folder):
    """A dataset of 11 pictures with a few labels each, by `shared_or_whole`."""
    paths = [str(folder / "abc"[index % 3] / f"{index}.png") for index in range(11)]
    labels = [label for index in range(11) for label in range(index % 3, 3)]
    return Dataset.of_sets(Files(paths), LabelSets.of_sizes(labels, [3 - index % 3 for index in range(11)]))


def precision_of(folder):
    """Average precision of the classes by an evaluation on both ranks, and by arithmetic on all images."""

    def run(images):
        return np.round(images.mean(axis=(2, 3)) * 20)  # with equal values

    data = pictures_in(folder)
    predictor = predictor_of(run, preprocessing=SPEC, num_classes=3, activation="sigmoid", batch_size=2)
    yield {"precision": evaluate(predictor, data).average_precision}
    (batch,) = load_batches(data, [np.arange(11)], EvalTransform(SPEC), SPEC, num_workers=1)
    is_positive = np.arange(3) >= np.arange(11)[:, None] % 3
    yield {"precision": average_precision(run(batch.images), is_positive)}


def count_unreadable(folder):
    """The unreadable images that each rank knows after an epoch; then the beginning of the error, if fewer
    are allowed, of training and of evaluation."""
    data = pictures_in(folder)
    for index in (1, 5, 9):
        data.source.paths[index] = str(folder / "missing.png")
    for limit in (3, 2):
        options = ["data.on_error=skip", f"data.max_unreadable={limit}", "data.batch_size=2", "device=cpu"]
        config = parse_config({"model": {"name": "EfficientNetB0_small", "num_classes": 3}}, options)
        trainer = Trainer(config, Network(Named(), None, SPEC, None), data, data, 1)
        steps = (trainer.train_one_epoch, (None,)), (trainer.evaluate, ())
        for call, arguments in steps:
            try:
                call(*arguments)
            except DataError as error:
                yield str(error).partition(" cannot")[0]
        if limit == 3:
            yield [item.index for item in trainer.state.progress.unreadable]


def shared_or_whole(folder):
    """The batches of an epoch of unequal classes, from both ranks in turn, and as one process has them."""
    if distributed.rank() == 0:
        draw_classes(folder, 12, 36, 36)
    distributed.gather(None)  # until they are written
    paths = [str(folder / "abc"[index % 3] / f"{index}.png") for index in range(12)]
    data = Dataset.of_files(paths, np.array([0] * 9 + [1, 1, 2]))
    sampling, size = "data.sampling=balanced", "data.batch_size="
    preprocessing = Preprocessing(32, 32, "bilinear", False, (0.5,) * 3, (0.5,) * 3)
    config = {"model": {"name": "EfficientNetB0_small", "num_classes": 3}}
    own = train_batches(
        parse_config(config, [sampling, f"{size}2"]), preprocessing, data, epoch=3, num_workers=1
    )
    shares = distributed.gather([(batch.indices, batch.images) for batch in own])
    parts = [part for parts in zip(*shares, strict=True) for part in parts]
    yield {"indices": interleaved(parts, 0), "images": interleaved(parts, 1)}
    indices = train_batch_indices(
        data.source, 4, seed=0, epoch=3, factors=repeat_factors(data.labels, "balanced")
    )
    transform = TrainTransform(preprocessing, AugmentConfig(), seed=0, epoch=3)
    whole = list(load_batches(data, indices, transform, preprocessing, num_workers=1))
    yield {
        "indices": np.concatenate([batch.indices for batch in whole]),
        "images": np.concatenate([batch.images for batch in whole]),
    }


def interleaved(parts, item):
    """The first image of rank 0, the first of rank 1, the second of rank 0, ... of each step."""
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return np.concatenate(
        [one for a, b in pairs for ab in zip(a[item], b[item], strict=True) for one in [np.stack(ab)]]
    )


def ends(state, batch):
    try:
        train(state, [batch], 1)
    except PpclsError as error:
        return all(part in str(error) for part in ("loss is nan", "step 0"))
    return False


def left_alone():
    """What a batch norm does not change whose input, or whose weight, has no gradient."""
    frozen = "train.freeze=[first.conv.weight, second.bn.weight]"
    state = make_state(Normed, "train.sync_bn=true", frozen)
    before = weights(state)
    train(state, batches(2, 2), 2)
    return {key for key, array in weights(state).items() if (array == before[key]).all()}


def recomputed_or_not(*overrides):
    for flag in ("true", "false"):
        state = make_state(SMALL, f"train.recompute={flag}", *overrides)
        train(state, batches(2, 2), 2)
        yield weights(state)


def knows_of_a_signal(batch):
    state, own = make_state(Plain), Requests(stop=distributed.rank() == 1)
    before = train_step(state, iter([batch]), 0.05, 0).requests
    after = train_step(state, iter([batch]), 0.05, 1, requests=lambda: own).requests
    return (before, after) == (Requests(), Requests(stop=True))


def resumed_or_not(folder):
    """All that two states have after three updates, the second one resumed after two."""
    options = ["train.ema_decay=0.9", "train.accumulate=2", "optim.name=adamw"]
    whole, resumed = (make_state(Normed, *options) for _ in range(2))
    data, path = list(batches(6, 2)), Path(folder) / "state"
    train(whole, data[:4], 2)
    saved = whole.state_dict()
    if saved is not None:
        write_state(path, saved)
    distributed.gather(None)  # until it is written
    resumed.load_state_dict(read_state(path))
    for state in (whole, resumed):
        train_step(state, iter(data[4:]), 0.05, 2)
        averages = {f"ema/{key}": tensor.numpy() for key, tensor in state.ema.state_dict().items()}
        yield weights(state) | averages


def main(out):
    distributed.start("cpu")
    arrays = whole_batches()
    failed = [name for name, holds in checks_of_a_rank(out).items() if not holds]
    if distributed.rank() == 0:
        np.savez(Path(out) / "two.npz", **arrays)
    if any(distributed.gather(failed)):
        raise SystemExit(f"rank {distributed.rank()}: not so: {failed}")


def accident(out, kind):
    """Two ranks exchange sums, until rank 1 fails, is killed or stalls, or both are left alone."""
    distributed.start("cpu")
    (Path(out) / f"started{distributed.rank()}").write_text(str(os.getpid()))
    with distributed.stalls_shown():
        for second in range(100):
            if distributed.rank() == 1 and second == 2:
                if kind == "fails":
                    raise PpclsError("rank 1 has a reason")
                if kind == "is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if kind == "stalls":
                    stalled()
            distributed.sum_over_ranks(np.ones(1))
            time.sleep(1)
    return 0


def stalled():
    time.sleep(100)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(lambda _: accident(*sys.argv[1:]))
    main(sys.argv[1])
