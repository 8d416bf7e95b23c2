"""One update of the weights. It takes its batches from an iterator and knows no dataset."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ppcls import distributed
from ppcls.commands import command_line
from ppcls.data.loader import Batch
from ppcls.errors import PpclsError
from ppcls.training.optimizer import clip_gradients
from ppcls.training.state import TrainState

if TYPE_CHECKING:
    from paddle import Tensor

MAX_SKIPS = 10  # skipped updates in a row that end a run: it will not recover


class Requests(NamedTuple):
    """Requests of one process, or of any: to stop the run, to save its state, to exchange the unreadable
    images that are new."""

    stop: bool = False
    save: bool = False
    exchange: bool = False


class Update(NamedTuple):
    """The result of a step.

    loss: mean loss on this rank. images: images of this rank behind the update, 0 if it was skipped.
    requests: the requests of all ranks.
    """

    loss: float
    images: int
    requests: Requests


def train_step(
    state: TrainState,
    batches: Iterator[Batch],
    rate: float,
    step: int,
    *,
    requests: Callable[[], Requests] = Requests,
    enter: Callable[[str], None] = lambda stage: None,
) -> Update:
    """Make one update from the mean gradient of the next `train.accumulate` batches.

    rate: the learning rate. step: number of the step, from 0 over all epochs. requests: asked once, after
    the backward pass. enter: called with the name of each stage that begins: data, forward, backward, update.
    If the loss or the gradients are not finite, train.on_nan decides for all ranks alike: the update is
    skipped, or PpclsError is raised.
    """
    train, clip_norm = state.config.train, state.config.optim.clip_norm
    may_skip = train.on_nan == "skip"

    # Clear the gradients of the last step; not earlier, as histograms read them after it
    state.optimizer.clear_grad(set_to_zero=False)
    before = [statistic.clone() for statistic in state.statistics] if may_skip else []

    # Add up the gradients of the batches
    losses, images = [], 0
    for part in range(train.accumulate):
        enter("data")
        batch = _next_batch(batches, step)
        _seed(state, step, part)
        with _gradient_exchange(state, part):
            losses.append(add_gradients(state, batch, enter))
        images += len(batch.images)

    # Average the gradients over the ranks where DataParallel has not done so
    enter("update")
    if state.world_size > 1 and (train.recompute or state.is_head_only):
        average_gradients(state.trainable)

    # Scale the gradients back, and clip them. Where nobody asks for the norm of all, that of the first
    # layer's shows a NaN that the backward pass hands on: it ends there
    state.precision.unscale(state.optimizer)
    asks_for_norm = may_skip or clip_norm is not None
    norm = clip_gradients(state.trainable if asks_for_norm else state.trainable[:1], clip_norm)

    # Agree with the other ranks on the loss, and on what any of them asks for
    loss = float(np.mean(losses))
    mean_loss, agreed = agree(loss, requests())

    # Skip the update, or end the run, if anything is not finite
    problem = find_problem(state, mean_loss, norm)
    if problem is not None:
        _skip_update(state, f"{problem} at step {step}", rate, before)
        return Update(loss, 0, agreed)

    # Update the weights
    state.progress.skipped_in_a_row = 0
    state.optimizer.set_lr(rate)
    state.precision.step(state.optimizer)
    # Update the moving average
    if state.ema is not None:
        state.ema.update()
    return Update(loss, images, agreed)


def add_gradients(
    state: TrainState, batch: Batch, enter: Callable[[str], None] = lambda stage: None
) -> float:
    """Run both passes on a batch and add its share to the gradients. Returns its mean loss on this rank."""
    import paddle

    train = state.config.train
    enter("forward")
    # Transfer the images and the labels to the device
    images, labels = paddle.to_tensor(batch.images), paddle.to_tensor(batch.labels)
    shares = None if batch.shares is None else paddle.to_tensor(batch.shares)
    # Forward pass
    with state.precision.autocast():
        logits = state.network(images)
    # Loss, in float32 with train.amp too
    logits = _at_least_float32(logits)
    if train.loss == "binary":
        loss = binary_cross_entropy(logits, labels, train.label_smoothing, shares)
    else:
        loss = cross_entropy(logits, labels, train.label_smoothing, state.class_weights, shares)
    # Backward pass
    enter("backward")
    state.precision.backward(loss / train.accumulate)
    return loss.item()


def cross_entropy(
    logits: "Tensor",
    labels: "Tensor",
    smoothing: float = 0.0,
    class_weights: "Tensor | None" = None,
    shares: "Tensor | None" = None,
) -> "Tensor":
    """Return the mean cross-entropy of the softmax of logits [N, C] with labels int64 [N]; or with labels
    int64 [N, M], of which each has its share of the target, float32 [N, M], as in a Batch. `smoothing` is
    spread over all classes. Of the targets, no array [N, C] is made.

    class_weights: float32 [C], factors of an image's loss by its class. An image of several classes has the
    weighted sum of its classes' losses. Smoothing does not change an image's weight. The sum is divided by
    N, not by the sum of the weights, so that it adds up over batches and ranks.
    """
    import paddle
    import paddle.nn.functional as F

    if shares is None and not smoothing and class_weights is None:
        return F.cross_entropy(logits, labels)
    labels, shares = _with_shares(labels, shares)
    if class_weights is not None:
        shares = shares * paddle.gather(class_weights, labels.flatten()).reshape(labels.shape)
    # F.log_softmax in parts, which take an eighth of its time on a CPU: it took 2 of 50 ms of a step of
    # EfficientNetB0 at 32 pixels
    logits = logits - logits.detach().max(axis=1, keepdim=True)
    logs = logits - paddle.logsumexp(logits, axis=1, keepdim=True)
    return -_mean_at(logs, labels, shares, smoothing)


def binary_cross_entropy(
    logits: "Tensor", labels: "Tensor", smoothing: float = 0.0, shares: "Tensor | None" = None
) -> "Tensor":
    """Return the cross-entropy of the sigmoid of each logit, [N, C], with a target of 1 for an image's labels
    and 0 for the other classes: the mean over images and classes.

    labels: int64 [N]; or int64 [N, M], each with its target, float32 [N, M], which is less than 1 if images
    are mixed. `smoothing` is the part of an image's targets that all classes divide among them.
    """
    import paddle.nn.functional as F

    labels, shares = _with_shares(labels, shares)
    # -t log(s) - (1 - t) log(1 - s) = softplus(x) - t x, for the sigmoid s of x
    at_targets = _mean_at(logits, labels, shares, smoothing) / logits.shape[1]
    return F.softplus(logits).mean() - at_targets


def _with_shares(labels: "Tensor", shares: "Tensor | None") -> "tuple[Tensor, Tensor]":
    """Return labels and shares [N, M]; without shares, one label of share 1 for each image."""
    if shares is not None:
        return labels, shares
    import paddle

    labels = labels.unsqueeze(1)
    return labels, paddle.ones(labels.shape, "float32")


def _at_least_float32(logits: "Tensor") -> "Tensor":
    """Return logits of half precision as float32."""
    import paddle

    return logits.astype("float32") if logits.dtype in (paddle.float16, paddle.bfloat16) else logits


def _mean_at(values: "Tensor", labels: "Tensor", shares: "Tensor", smoothing: float) -> "Tensor":
    """Return the mean over images of the sum of values [N, C] times smoothed targets, which are gathered."""
    import paddle

    shares = shares.astype(values.dtype)
    sums = (shares * paddle.take_along_axis(values, labels, 1)).sum(axis=1)
    if smoothing:
        sums = (1 - smoothing) * sums + smoothing * shares.sum(axis=1) * values.mean(axis=1)
    return sums.mean()


def average_gradients(parameters: "list[Tensor]") -> None:
    """Average the gradients over the ranks, as DataParallel does during the backward pass. With recomputed
    blocks it cannot."""
    from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

    fused_allreduce_gradients(parameters, None)


def agree(loss: float, own: Requests) -> tuple[float, Requests]:
    """Return the mean loss of all ranks. The same all-reduce tells every rank what any of them requests."""
    sums = distributed.sum_over_ranks(np.array([loss, *own], np.float64))
    total, *requests = sums.tolist()
    return total / distributed.world_size(), Requests(*(count > 0 for count in requests))


def find_problem(state: TrainState, loss: float, norm: float) -> str | None:
    """Return what is not finite, the same on all ranks, even if only one of them had the bad batch."""
    if not np.isfinite(loss):
        return f"The loss is {loss}"
    if not np.isfinite(norm) and state.precision.scaler is None:  # a loss scaler handles it itself
        return f"The norm of the gradients is {norm}"
    return None


def _skip_update(state: TrainState, problem: str, rate: float, before: "list[Tensor]") -> None:
    """Put the batch-norm statistics back to their values before the step. Raises PpclsError if train.on_nan
    is "fail", or after too many skipped updates in a row."""
    state.progress.skipped_in_a_row += 1
    may_skip, in_a_row = state.config.train.on_nan == "skip", state.progress.skipped_in_a_row
    if not may_skip or in_a_row >= min(MAX_SKIPS, state.length.steps_of(state.progress.epoch)):
        times = f", {in_a_row} times in a row" if may_skip else ""
        raise PpclsError(
            f"{problem}{times}, learning rate {rate:.4g}. The checkpoints of earlier epochs are whole. Lower "
            "optim.lr, or raise optim.warmup_epochs."
        )
    for statistic, value in zip(state.statistics, before, strict=True):
        statistic.set_value(value)


def _next_batch(batches: Iterator[Batch], step: int) -> Batch:
    """Return the next batch. Raises PpclsError if none of its images could be read."""
    batch = next(batches)
    if not len(batch.images):
        raise PpclsError(
            f"step {step}: none of this batch's images can be read, the first of them "
            f"{batch.unreadable[0].where}. Repair the data: {command_line('data', 'check')}."
        )
    return batch


def _seed(state: TrainState, step: int, part: int) -> None:
    """Seed dropout and drop connect of a batch, so that they depend on nothing that came before it."""
    import paddle

    epoch, step_in_epoch = divmod(step, state.steps_per_epoch)
    position = step_in_epoch * state.config.train.accumulate + part
    entropy = (state.config.seed, epoch, position, state.rank)
    paddle.seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def _gradient_exchange(state: TrainState, part: int) -> AbstractContextManager:
    """Return a context in which DataParallel, where there is one, exchanges gradients behind the last batch
    of a step only, and not at all with recomputed blocks."""
    train = state.config.train
    if state.network is not state.local and (train.recompute or part < train.accumulate - 1):
        return state.network.no_sync()
    return nullcontext()
