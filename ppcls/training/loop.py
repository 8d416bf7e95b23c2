"""The training loop: epochs of steps, an evaluation after each, the last and the best weights kept."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls import distributed
from ppcls.config import Config
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch, TrainTransform, load_batches, train_order
from ppcls.errors import ConfigError, PpclsError
from ppcls.evaluation.evaluate import Evaluation, evaluate
from ppcls.inference.engines import EagerEngine
from ppcls.preprocessing import Preprocessing
from ppcls.progress import progress_bar
from ppcls.training.optimizer import build_optimizer
from ppcls.training.record import RunRecord
from ppcls.training.schedule import learning_rate, scaled_lr

if TYPE_CHECKING:
    from paddle import Tensor, nn
    from paddle.optimizer import Optimizer


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

        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.global_batch = self.config.data.batch_size * self.world_size
        self.steps_per_epoch = len(self.train_set) // self.global_batch
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"The training data has {len(self.train_set)} images, fewer than one global batch of "
                f"{self.global_batch} (data.batch_size times {self.world_size} processes). Lower "
                "data.batch_size."
            )
        self.peak_lr = scaled_lr(self.config.optim, self.global_batch)
        self.optimizer: Optimizer = build_optimizer(self.config.optim, self.model, self.peak_lr)
        self.network = paddle.DataParallel(self.model) if self.world_size > 1 else self.model

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's share of an epoch, counted from 0."""
        config = self.config
        transform = TrainTransform(
            self.spec,
            crop_area=config.augment.crop_area,
            crop_ratio=config.augment.crop_ratio,
            flip=config.augment.flip,
            seed=config.seed,
            epoch=epoch,
        )
        order = train_order(
            len(self.train_set),
            config.data.batch_size,
            seed=config.seed,
            epoch=epoch,
            rank=self.rank,
            world_size=self.world_size,
        )
        return load_batches(
            self.train_set,
            order,
            transform,
            self.spec,
            num_workers=self.num_workers,
            on_error=config.data.on_error,
        )

    def train(self, record: RunRecord | None, say: Callable[[str], None]) -> Evaluation:
        """All epochs. record: where rank 0 writes. Returns the best epoch's evaluation."""
        best: Evaluation | None = None
        for epoch in range(self.config.train.epochs):
            trained = self.train_one_epoch(epoch, record)
            average_batch_norm_statistics(self.model)
            result = self.evaluate()
            is_best = best is None or (result.top1, -result.loss) > (best.top1, -best.loss)
            if is_best:
                best = result
            values = {"epoch": epoch + 1, **trained}
            values |= {f"eval_{name}": value for name, value in result.to_dict().items()}
            top5 = "" if result.top5 is None else f", top-5 {result.top5:.4f}"
            say(
                f"epoch {epoch + 1}/{self.config.train.epochs}: train loss {trained['train_loss']:.4f}, "
                f"eval loss {result.loss:.4f}, top-1 {result.top1:.4f}{top5}; "
                f"{trained['images_per_second']:.1f} images/s, "
                f"{trained['data_wait']:.0%} of the time waiting for data{', best so far' if is_best else ''}"
            )
            write = partial(self._write, record, epoch, values, result, is_best)
            distributed.run_together(write)
        if best is None:
            raise ConfigError("train.epochs must be at least 1.")
        return best

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
        import paddle

        self.network.train()
        config = self.config
        losses, images, waited = 0.0, 0, 0.0
        start = time.perf_counter()
        batches = self.batches(epoch)
        title = f"epoch {epoch + 1}/{config.train.epochs}"
        with progress_bar(self.steps_per_epoch * self.global_batch, title, config.train.log_seconds) as bar:
            for step_in_epoch in range(self.steps_per_epoch):
                before = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - before
                step = epoch * self.steps_per_epoch + step_in_epoch
                rate = learning_rate(
                    config.optim, self.peak_lr, step, self.steps_per_epoch, config.train.epochs
                )
                paddle.seed(_step_seed(config.seed, epoch, step_in_epoch, self.rank))
                loss = self.train_step(batch, rate, step)
                losses += loss * len(batch.images)
                images += len(batch.images)
                wait_share = waited / (time.perf_counter() - start)
                bar.set_postfix_str(
                    f"loss {loss:.4f}, lr {rate:.4g}, data wait {wait_share:.0%}", refresh=False
                )
                bar.update(self.global_batch)
                if record is not None:
                    record.add_scalars({"train/loss": loss, "train/lr": rate}, step)
        seconds = time.perf_counter() - start
        sums = distributed.sum_over_ranks(np.array([losses, images], np.float64))
        return {
            "train_loss": float(sums[0] / sums[1]),
            "lr": rate,
            "images_per_second": round(float(sums[1]) / seconds, 2),
            "data_wait": round(waited / seconds, 4),
        }

    def train_step(self, batch: Batch, rate: float, step: int) -> float:
        """One update from one batch; returns its mean loss on this rank."""
        import paddle

        if not len(batch.images):
            raise PpclsError(
                f"step {step}: none of this batch's images can be read, the first of them "
                f"{batch.unreadable[0].where}. Repair the data: python -m ppcls.data check."
            )
        logits = self.network(paddle.to_tensor(batch.images))
        loss = cross_entropy(logits, paddle.to_tensor(batch.labels), self.config.train.label_smoothing)
        value = loss.item()
        if not np.isfinite(value):
            raise PpclsError(
                f"The loss is {value} at step {step}, learning rate {rate:.4g}. The checkpoints of the "
                "epochs before are whole. Lower optim.lr, or raise optim.warmup_epochs."
            )
        loss.backward()
        self.optimizer.set_lr(rate)
        self.optimizer.step()
        self.optimizer.clear_grad()
        return value

    def evaluate(self) -> Evaluation:
        data = self.config.data
        return evaluate(
            EagerEngine(self.model).run,
            self.eval_set,
            self.spec,
            num_classes=self.config.model.num_classes,
            batch_size=data.batch_size,
            num_workers=self.num_workers,
            on_error=data.on_error,
        )


def cross_entropy(logits: "Tensor", labels: "Tensor", smoothing: float) -> "Tensor":
    """Mean cross-entropy of logits [N, C] with labels int64 [N]; `smoothing` is spread over all classes."""
    import paddle.nn.functional as F

    if not smoothing:
        return F.cross_entropy(logits, labels)
    targets = F.label_smooth(F.one_hot(labels, logits.shape[1]), epsilon=smoothing)
    return F.cross_entropy(logits, targets, soft_label=True)


def average_batch_norm_statistics(model: "nn.Layer") -> None:
    """Each rank has seen its own images: from here on all share the mean of their statistics."""
    if distributed.world_size() == 1:
        return
    statistics = [p for key, p in model.state_dict().items() if key.endswith(("._mean", "._variance"))]
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
