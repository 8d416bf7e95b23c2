"""The training loop: epochs of steps, an evaluation after each, the last and the best weights kept, and
states from which a run goes on as if it had not been interrupted."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppcls import distributed
from ppcls.config import Config
from ppcls.data.augment import Mixing
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch, load_batches, mix_batches, train_batch_indices
from ppcls.data.transforms import TrainTransform
from ppcls.errors import ConfigError, PpclsError, Stopped
from ppcls.evaluation.evaluate import Evaluation, evaluate
from ppcls.inference.engines import EagerEngine
from ppcls.preprocessing import Preprocessing
from ppcls.processor import keep_freed_memory
from ppcls.progress import progress_bar
from ppcls.training.checkpoint import Progress, Sums, capture, what_is_trained
from ppcls.training.ema import ModelEma
from ppcls.training.optimizer import build_optimizer, clip_gradients, trainable
from ppcls.training.parameters import batch_norm_statistics, freeze
from ppcls.training.precision import Precision
from ppcls.training.record import RunRecord, write_together
from ppcls.training.schedule import learning_rate, scaled_lr
from ppcls.training.signals import StopSignals

if TYPE_CHECKING:
    from paddle import Tensor, nn
    from paddle.optimizer import Optimizer

SKIPS = 10  # updates left out in a row that end a run: it will not recover


class Update(NamedTuple):
    """One step: its mean loss on this rank and the images behind it, none where the update was left out."""

    loss: float
    images: int


class Agreed(NamedTuple):
    """What all ranks know after a step: whether one of them was asked to stop, or the time for a state has
    come."""

    stop: bool = False
    save: bool = False


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

        if paddle.get_device() == "cpu":
            keep_freed_memory()
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
        self.progress, self.sums = Progress(), Sums()
        # the state of a resumed optimizer, which Paddle 2.6 returns only after the next update
        self.awaiting_update: dict[str, Tensor] = {}
        self.signals = StopSignals()
        self.agreed = Agreed()
        self.saved_at = time.monotonic()
        self.network = paddle.DataParallel(self.model) if self.world_size > 1 else self.model

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's share of an epoch, counted from 0, augmented and mixed; from a step on, if wanted."""
        config = self.config
        transform = TrainTransform(self.spec, config.augment, seed=config.seed, epoch=epoch)
        batch_indices = train_batch_indices(
            len(self.train_set),
            config.data.batch_size,
            seed=config.seed,
            epoch=epoch,
            rank=self.rank,
            world_size=self.world_size,
        )
        first = first_step * config.train.accumulate
        batches = load_batches(
            self.train_set,
            batch_indices[first : self.steps_per_epoch * config.train.accumulate],
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
        return mix_batches(
            batches, mixing, classes, seed=config.seed, epoch=epoch, rank=self.rank, first=first
        )

    def train(self, record: RunRecord | None, say: Callable[[str], None]) -> dict[str, Any]:
        """All epochs that are left, or fewer by train.patience. record: where rank 0 writes. Returns the line
        of metrics.jsonl of the best epoch.

        Raises Stopped, once the state is saved, where a signal asks for it: enter `signals` to have it noted.
        """
        progress, epochs = self.progress, self.config.train.epochs
        if progress.history and progress.step == 0:
            self._keep(record)  # perhaps the run was killed between a state and these
        try:
            while progress.epoch < epochs and not self._is_out_of_patience(say):
                self._train_and_evaluate(progress, record, say)
                self.save(record)
                self._keep(record)
        except Stopped:
            self.save(record)
            raise
        if progress.best is None:
            raise ConfigError(
                "No epoch is left to train, and the best one's weights are not in output_dir. Resume in the "
                "folder of the run itself."
            )
        return progress.best

    def _is_out_of_patience(self, say: Callable[[str], None]) -> bool:
        patience, best = self.config.train.patience, self.progress.best
        if patience is None or best is None or self.progress.epoch - best["epoch"] < patience:
            return False
        say(f"stopped: no better epoch than {best['epoch']} in train.patience={patience} epochs")
        return True

    def _train_and_evaluate(
        self, progress: Progress, record: RunRecord | None, say: Callable[[str], None]
    ) -> None:
        """One epoch, or what is left of it."""
        number, epochs = progress.epoch + 1, self.config.train.epochs
        trained = self.train_one_epoch(progress.epoch, record, progress.step)
        average_batch_norm_statistics(self.model)
        raw = None if self.ema is None else self.evaluate()
        with self.weights_to_keep():
            result = self.evaluate()
        line = {"epoch": number, **trained}
        line |= {f"eval_{name}": value for name, value in result.to_dict().items()}
        if raw is not None:
            own = raw.to_dict()
            line |= {f"eval_raw_{name}": own[name] for name in ("top1", "top5", "loss") if name in own}
        best = progress.best
        is_best = best is None or (result.top1, -result.loss) > (best["eval_top1"], -best["eval_loss"])
        progress.history.append(line)
        progress.best = line if is_best else best
        progress.epoch, progress.step = number, 0
        top5 = "" if result.top5 is None else f", top-5 {result.top5:.4f}"
        say(
            f"epoch {number}/{epochs}: train loss {trained['train_loss']:.4f}, "
            f"eval loss {result.loss:.4f}, top-1 {result.top1:.4f}{top5}; "
            f"{trained['images_per_second']:.1f} images/s, {trained['data_wait']:.0%} of the time "
            f"waiting for data{', best so far' if is_best else ''}"
        )

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

    def save(self, record: RunRecord | None) -> None:
        """The state as it is, for the run to be resumed from. All ranks together."""
        state, best = capture(self), self.progress.best
        best_step = None if best is None else best["epoch"] * self.steps_per_epoch

        def write(own: RunRecord) -> None:
            if state is not None:
                own.save_state(state, self.updates, best_step)

        write_together(record, write)
        self.saved_at = time.monotonic()

    def _keep(self, record: RunRecord | None) -> None:
        """Write what the last whole epoch has left: its line, and its weights."""
        with self.weights_to_keep():
            write_together(record, lambda own: own.keep(self.model, self.progress, self.updates))

    def train_one_epoch(self, epoch: int, record: RunRecord | None, first_step: int = 0) -> dict[str, float]:
        """Returns train_loss, the mean over all images and ranks, and how fast it went.

        first_step: the steps before it were made before the run was resumed. Raises Stopped after a step."""
        self.network.train()
        for layer in self.frozen:
            layer.eval()
        config = self.config
        if first_step == 0:
            self.sums = Sums()
        sums, waited = self.sums, self.sums.waited
        start = time.perf_counter() - sums.seconds
        batches = Timed(self.batches(epoch, first_step))
        title = f"epoch {epoch + 1}/{config.train.epochs}"
        total, done = (count * self.global_batch for count in (self.steps_per_epoch, first_step))
        with progress_bar(total, title, config.train.log_seconds, initial=done) as bar:
            for step_in_epoch in range(first_step, self.steps_per_epoch):
                step = epoch * self.steps_per_epoch + step_in_epoch
                rate = self.rate(step)
                loss, trained = self.train_step(batches, rate, step)
                if trained:
                    sums.losses += loss * trained
                    sums.images += trained
                else:
                    sums.skipped += 1
                sums.seconds, sums.waited = time.perf_counter() - start, waited + batches.seconds
                bar.set_postfix_str(
                    f"loss {loss:.4f}, lr {rate:.4g}, data wait {sums.waited / sums.seconds:.0%}",
                    refresh=False,
                )
                bar.update(self.global_batch)
                if record is not None and trained:
                    record.add_scalars({"train/loss": loss, "train/lr": rate}, step + 1)
                self.progress.step = step_in_epoch + 1
                if self.agreed.stop:
                    raise Stopped(max(distributed.gather(self.signals.number)))
                if self.agreed.save or (step + 1) % (config.train.checkpoint_steps or step + 2) == 0:
                    self.save(record)
        if record is not None and config.train.histograms:
            record.add_histograms(self.model, (epoch + 1) * self.steps_per_epoch)
        totals = distributed.sum_over_ranks(np.array([sums.losses, sums.images], np.float64))
        values = {
            "train_loss": float(totals[0] / totals[1]),
            "lr": self.rate((epoch + 1) * self.steps_per_epoch - 1),
            "images_per_second": round(float(totals[1]) / sums.seconds, 2),
            "data_wait": round(sums.waited / sums.seconds, 4),
        }
        return values | ({"skipped_updates": int(sums.skipped)} if config.train.on_nan == "skip" else {})

    @cached_property
    def meaning(self) -> dict[str, Any]:
        """What the config does not tell, and a resumed run must have again."""
        return what_is_trained(self)

    @property
    def updates(self) -> int:
        """Since the run began, those that were left out as well."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over all epochs."""
        config = self.config
        return learning_rate(config.optim, self.peak_lr, step, self.steps_per_epoch, config.train.epochs)

    def train_step(self, batches: Iterator[Batch], rate: float, step: int) -> Update:
        """One update from the mean gradient of the next `train.accumulate` batches.

        Raises PpclsError for a loss or gradients that are not finite, or leaves the update out, on all ranks
        alike: train.on_nan.
        """
        import paddle

        train, limit = self.config.train, self.config.optim.clip_norm
        may_skip = train.on_nan == "skip"
        self.optimizer.clear_grad()  # not after the update: those who look at gradients come then
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
        problem = self._what_is_not_finite(self._agree(loss), norm)
        if problem is None:
            self.progress.skipped_in_a_row = 0
            self.optimizer.set_lr(rate)
            self.precision.step(self.optimizer)
            if self.ema is not None:
                self.ema.update()
        else:
            self.progress.skipped_in_a_row += 1
            in_a_row = self.progress.skipped_in_a_row
            if not may_skip or in_a_row >= min(SKIPS, self.steps_per_epoch):
                times = f", {in_a_row} times in a row" if may_skip else ""
                raise PpclsError(
                    f"{problem} at step {step}{times}, learning rate {rate:.4g}. The checkpoints of the "
                    "epochs before are whole. Lower optim.lr, or raise optim.warmup_epochs."
                )
            for statistic, value in zip(self.statistics, before, strict=True):
                statistic.set_value(value)
            images = 0
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

    def _agree(self, loss: float) -> float:
        """The mean loss of all ranks. What they must know of one another travels with it: `agreed`."""
        minutes = self.config.train.checkpoint_minutes
        is_late = self.rank == 0 and minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        mine = np.array([loss, self.signals.number > 0, is_late], np.float64)
        loss, stop, save = distributed.sum_over_ranks(mine).tolist()
        self.agreed = Agreed(stop > 0, save > 0)
        return loss / self.world_size

    def _what_is_not_finite(self, loss: float, norm: float) -> str | None:
        """The same on all ranks, of which a single one may have had the bad batch."""
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
            signal=lambda: self.signals.number,
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
