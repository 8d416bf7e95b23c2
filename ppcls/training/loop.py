"""The training loop: epochs of steps, an evaluation after each, the last and the best weights kept."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppcls import distributed
from ppcls.config import Config
from ppcls.data.augment import Mixing
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch, TrainTransform, load_batches, mix_batches, train_order
from ppcls.errors import ConfigError, PpclsError
from ppcls.evaluation.evaluate import Evaluation, evaluate
from ppcls.inference.engines import EagerEngine
from ppcls.preprocessing import Preprocessing
from ppcls.progress import progress_bar
from ppcls.training.ema import ModelEma
from ppcls.training.optimizer import build_optimizer, clip_gradients, trainable
from ppcls.training.parameters import batch_norm_statistics, freeze
from ppcls.training.precision import Precision
from ppcls.training.record import RunRecord
from ppcls.training.schedule import learning_rate, scaled_lr

if TYPE_CHECKING:
    from paddle import Tensor, nn
    from paddle.optimizer import Optimizer

SKIPS = 10  # updates left out in a row that end a run: it will not recover


class Update(NamedTuple):
    """One step: its mean loss on this rank and the images behind it, none where the update was left out."""

    loss: float
    images: int


class Timed(Iterator[Batch]):
    """Batches, and the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches
        self.seconds = 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch


@dataclass
class Trainer:
    """A network with all that trains it. `model` is the plain network, `network` what steps run through:
    the same, or its data-parallel wrapper."""

    config: Config
    model: "nn.Layer"
    spec: Preprocessing
    train_set: Dataset
    eval_set: Dataset
    num_workers: int

    def __post_init__(self) -> None:
        import paddle

        train, optim = self.config.train, self.config.optim
        self.precision = Precision(train)
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.global_batch = self.config.data.batch_size * self.world_size * train.accumulate
        self.steps_per_epoch = len(self.train_set) // self.global_batch
        if self.steps_per_epoch == 0:
            accumulated = f" times train.accumulate {train.accumulate}" if train.accumulate > 1 else ""
            raise ConfigError(
                f"The training data has {len(self.train_set)} images, fewer than one global batch of "
                f"{self.global_batch} (data.batch_size times {self.world_size} processes{accumulated}). "
                "Lower data.batch_size."
            )
        if train.sync_bn and self.world_size > 1:
            from ppcls.training.sync_bn import use_sync_bn

            use_sync_bn(self.model)
        if train.recompute:
            from ppcls.training.recompute import recompute_blocks

            recompute_blocks(self.model)
        self.frozen = freeze(self.model, train.freeze)
        self.trainable = list(trainable(self.model).values())
        self.statistics = batch_norm_statistics(self.model)
        self.peak_lr = scaled_lr(optim, self.global_batch)
        self.optimizer: Optimizer = build_optimizer(optim, self.model, self.peak_lr)
        self.ema = None if train.ema_decay is None else ModelEma(self.model, train.ema_decay)
        self.skipped_in_a_row = 0
        self.network = paddle.DataParallel(self.model) if self.world_size > 1 else self.model

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's share of an epoch, counted from 0, augmented and mixed."""
        config = self.config
        transform = TrainTransform(self.spec, config.augment, seed=config.seed, epoch=epoch)
        order = train_order(
            len(self.train_set),
            config.data.batch_size,
            seed=config.seed,
            epoch=epoch,
            rank=self.rank,
            world_size=self.world_size,
        )
        batches = load_batches(
            self.train_set,
            order[: self.steps_per_epoch * config.train.accumulate],
            transform,
            self.spec,
            num_workers=self.num_workers,
            on_error=config.data.on_error,
            finish=transform.finish,
        )
        mixing = Mixing(config.augment.mixup, config.augment.cutmix)
        if not (mixing.mixup or mixing.cutmix):
            return batches
        classes = config.model.num_classes
        return mix_batches(batches, mixing, classes, seed=config.seed, epoch=epoch, rank=self.rank)

    def train(self, record: RunRecord | None, say: Callable[[str], None]) -> Evaluation:
        """All epochs, or fewer by train.patience. record: where rank 0 writes. Returns the best epoch's
        evaluation."""
        best: Evaluation | None = None
        best_epoch, patience = 0, self.config.train.patience
        for epoch in range(self.config.train.epochs):
            trained = self.train_one_epoch(epoch, record)
            with self.weights_to_keep():
                result = self.evaluate()
                is_best = best is None or (result.top1, -result.loss) > (best.top1, -best.loss)
                if is_best:
                    best, best_epoch = result, epoch
                values = {"epoch": epoch + 1, **trained}
                values |= {f"eval_{name}": value for name, value in result.to_dict().items()}
                top5 = "" if result.top5 is None else f", top-5 {result.top5:.4f}"
                say(
                    f"epoch {epoch + 1}/{self.config.train.epochs}: train loss {trained['train_loss']:.4f}, "
                    f"eval loss {result.loss:.4f}, top-1 {result.top1:.4f}{top5}; "
                    f"{trained['images_per_second']:.1f} images/s, {trained['data_wait']:.0%} of the time "
                    f"waiting for data{', best so far' if is_best else ''}"
                )
                write = partial(self._write, record, epoch, values, result, is_best)
                distributed.run_together(write)
            if patience is not None and epoch - best_epoch >= patience:
                say(f"stopped: no better epoch than {best_epoch + 1} in train.patience={patience} epochs")
                break
        if best is None:
            raise ConfigError("train.epochs must be at least 1.")
        return best

    @contextmanager
    def weights_to_keep(self) -> Iterator[None]:
        """Inside, the network has the weights to evaluate and to save: with train.ema_decay the averages."""
        average_batch_norm_statistics(self.model)
        if self.ema is None:
            yield
            return
        with self.ema.swapped():
            average_batch_norm_statistics(self.model)
            yield

    def _write(
        self,
        record: RunRecord | None,
        epoch: int,
        values: dict[str, Any],
        result: Evaluation,
        is_best: bool,
    ) -> None:
        if record is None:
            return
        record.add_epoch(values)
        scalars = {"eval/top1": result.top1, "eval/top5": result.top5, "eval/loss": result.loss}
        step = (epoch + 1) * self.steps_per_epoch
        record.add_scalars({tag: value for tag, value in scalars.items() if value is not None}, step)
        record.save(self.model, is_best, epoch + 1, result.to_dict())

    def train_one_epoch(self, epoch: int, record: RunRecord | None) -> dict[str, float]:
        """Returns train_loss, the mean over all images and ranks, and how fast it went."""
        self.network.train()
        for layer in self.frozen:
            layer.eval()
        config = self.config
        losses, images, skipped = 0.0, 0, 0
        start = time.perf_counter()
        batches = Timed(self.batches(epoch))
        title = f"epoch {epoch + 1}/{config.train.epochs}"
        with progress_bar(self.steps_per_epoch * self.global_batch, title, config.train.log_seconds) as bar:
            for step_in_epoch in range(self.steps_per_epoch):
                step = epoch * self.steps_per_epoch + step_in_epoch
                rate = learning_rate(
                    config.optim, self.peak_lr, step, self.steps_per_epoch, config.train.epochs
                )
                loss, trained = self.train_step(batches, rate, step)
                if trained:
                    losses += loss * trained
                    images += trained
                else:
                    skipped += 1
                wait_share = batches.seconds / (time.perf_counter() - start)
                bar.set_postfix_str(
                    f"loss {loss:.4f}, lr {rate:.4g}, data wait {wait_share:.0%}", refresh=False
                )
                bar.update(self.global_batch)
                if record is not None and trained:
                    record.add_scalars({"train/loss": loss, "train/lr": rate}, step)
        seconds = time.perf_counter() - start
        sums = distributed.sum_over_ranks(np.array([losses, images], np.float64))
        values = {
            "train_loss": float(sums[0] / sums[1]),
            "lr": rate,
            "images_per_second": round(float(sums[1]) / seconds, 2),
            "data_wait": round(batches.seconds / seconds, 4),
        }
        return values | ({"skipped_updates": skipped} if config.train.on_nan == "skip" else {})

    def train_step(self, batches: Iterator[Batch], rate: float, step: int) -> Update:
        """One update from the mean gradient of the next `train.accumulate` batches.

        Raises PpclsError for a loss or gradients that are not finite, or leaves the update out, on all ranks
        alike: train.on_nan.
        """
        import paddle

        train, limit = self.config.train, self.config.optim.clip_norm
        may_skip = train.on_nan == "skip"
        before = [statistic.clone() for statistic in self.statistics] if may_skip else []
        losses, images = [], 0
        for part in range(train.accumulate):
            batch = next(batches)
            if not len(batch.images):
                raise PpclsError(
                    f"step {step}: none of this batch's images can be read, the first of them "
                    f"{batch.unreadable[0].where}. Repair the data: python -m ppcls.data check."
                )
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            position = step_in_epoch * train.accumulate + part
            paddle.seed(_step_seed(self.config.seed, epoch, position, self.rank))
            stays_here = self.world_size > 1 and (train.recompute or part < train.accumulate - 1)
            with self.network.no_sync() if stays_here else nullcontext():
                losses.append(self._add_gradients(batch))
            images += len(batch.images)
        if train.recompute and self.world_size > 1:
            average_gradients(self.trainable)
        self.precision.unscale(self.optimizer)
        norm = clip_gradients(self.trainable, limit) if may_skip or limit is not None else 0.0
        loss = float(np.mean(losses))
        problem = self._what_is_not_finite(loss, norm)
        if problem is None:
            self.skipped_in_a_row = 0
            self.optimizer.set_lr(rate)
            self.precision.step(self.optimizer)
            if self.ema is not None:
                self.ema.update()
        else:
            self.skipped_in_a_row += 1
            if not may_skip or self.skipped_in_a_row >= min(SKIPS, self.steps_per_epoch):
                times = f", {self.skipped_in_a_row} times in a row" if may_skip else ""
                raise PpclsError(
                    f"{problem} at step {step}{times}, learning rate {rate:.4g}. The checkpoints of the "
                    "epochs before are whole. Lower optim.lr, or raise optim.warmup_epochs."
                )
            for statistic, value in zip(self.statistics, before, strict=True):
                statistic.set_value(value)
            images = 0
        self.optimizer.clear_grad()
        return Update(loss, images)

    def _add_gradients(self, batch: Batch) -> float:
        """Returns the batch's mean loss on this rank."""
        import paddle

        train = self.config.train
        with self.precision.autocast():
            logits = self.network(paddle.to_tensor(batch.images))
            loss = cross_entropy(logits, paddle.to_tensor(batch.labels), train.label_smoothing)
        self.precision.backward(loss / train.accumulate)
        return loss.item()

    def _what_is_not_finite(self, loss: float, norm: float) -> str | None:
        """The same on all ranks, of which a single one may have had the bad batch."""
        loss = float(distributed.sum_over_ranks(np.array([loss]))[0]) / self.world_size
        if not np.isfinite(loss):
            return f"The loss is {loss}"
        if not np.isfinite(norm) and self.precision.scaler is None:  # a scaler sees to it itself
            return f"The norm of the gradients is {norm}"
        return None

    def evaluate(self) -> Evaluation:
        data = self.config.data
        return evaluate(
            EagerEngine(self.model),
            self.eval_set,
            self.spec,
            num_classes=self.config.model.num_classes,
            batch_size=data.batch_size,
            num_workers=self.num_workers,
            on_error=data.on_error,
        )


def cross_entropy(logits: "Tensor", labels: "Tensor", smoothing: float) -> "Tensor":
    """Mean cross-entropy of logits [N, C] with labels int64 [N], or classes' shares float32 [N, C];
    `smoothing` is spread over all classes."""
    import paddle.nn.functional as F

    if labels.ndim == 1:
        if not smoothing:
            return F.cross_entropy(logits, labels)
        labels = F.one_hot(labels, logits.shape[1])
    if smoothing:
        labels = F.label_smooth(labels, epsilon=smoothing)
    return F.cross_entropy(logits, labels, soft_label=True)


def average_gradients(parameters: "list[Tensor]") -> None:
    """What DataParallel does while the backward pass goes on, which it cannot with recomputed blocks."""
    from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

    fused_allreduce_gradients(parameters, None)


def average_batch_norm_statistics(model: "nn.Layer") -> None:
    """Each rank has seen its own images: from here on all share the mean of their statistics."""
    if distributed.world_size() == 1:
        return
    statistics = batch_norm_statistics(model)
    flat = distributed.sum_over_ranks(np.concatenate([p.numpy() for p in statistics]))
    flat = (flat / distributed.world_size()).astype(np.float32)
    start = 0
    for parameter in statistics:
        size = parameter.shape[0]
        parameter.set_value(flat[start : start + size])
        start += size


def _step_seed(*entropy: int) -> int:
    """Dropout and drop connect of a step depend on nothing that came before it."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
