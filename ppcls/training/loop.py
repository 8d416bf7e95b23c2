"""The training loop: epochs of steps, an evaluation after each, and when to save weights and states."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ppcls import distributed
from ppcls.build import Network
from ppcls.config import Config
from ppcls.data.class_weights import resolve_class_weights
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch, Unreadable, require_within
from ppcls.data.sampling import repeat_factors
from ppcls.errors import ConfigError, Stopped
from ppcls.evaluation.evaluate import FEW_CLASSES, Evaluation, evaluate
from ppcls.evaluation.metrics import MEASURES
from ppcls.inference.eager import eager_predictor
from ppcls.intervals import with_interval
from ppcls.progress import progress_bar
from ppcls.training.batches import batches_of_steps, count_steps
from ppcls.training.length import global_batch, resolve_length
from ppcls.training.record import RunRecord, write_together
from ppcls.training.same_run import RunIdentity, check_same_run, take_fingerprint
from ppcls.training.signals import StopSignals
from ppcls.training.state import SavedState, Sums, TrainState
from ppcls.training.step import Requests, Update, train_step

Log = Callable[[str], None]
RAW = ("top1", "top1_interval", "top5", "top5_interval", "map", "loss")  # of the weights that are trained
OF_EACH_CLASS = ("eval_class_recall", "eval_class_recall_interval", "eval_average_precision")


class Timed(Iterator[Batch]):
    """Batches, the seconds that were spent waiting for them, and their unreadable images."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches
        self.seconds = 0.0
        self.unreadable: list[Unreadable] = []

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        self.unreadable += batch.unreadable
        return batch


@dataclass
class Trainer:
    """A run: its state, its data, and the loop over its epochs.

    network: as `build_to_train` returns it. Enter `signals` to have a signal stop the run after a step.
    """

    config: Config
    network: Network
    train_set: Dataset
    eval_set: Dataset
    num_workers: int

    def __post_init__(self) -> None:
        self.global_batch = global_batch(self.config)
        self.length = resolve_length(self.config, count_steps(self.config, len(self.train_set)))
        self.steps_per_epoch = self.length.steps_per_epoch
        self.class_weights = self._resolve_class_weights()
        self.state = TrainState(self.config, self.network.model, self.steps_per_epoch, self.class_weights)
        self.signals = StopSignals()
        self.saved_at = time.monotonic()
        self.is_resumed = False
        self.unreadable: list[Unreadable] = []  # in this process's batches of the running epoch

    def _resolve_class_weights(self) -> np.ndarray | None:
        """Return the values of train.class_weights, float64 [C]; None for null. Raises DataError."""
        source, labels = self.config.train.class_weights, self.train_set.all_labels
        if source is None or labels is None:
            return None
        factors = repeat_factors(labels, self.config.data.sampling)
        return resolve_class_weights(source, labels, self.config.model.num_classes, factors)

    @cached_property
    def identity(self) -> RunIdentity:
        """The fields that a resumed run must have again."""
        preprocessing, start = self.network.preprocessing, self.network.weights
        fingerprint = take_fingerprint(
            self.config, self.train_set, self.eval_set, preprocessing, self.class_weights
        )
        return RunIdentity(self.config, fingerprint, start, self.state.kernels.name)

    def resume(self, saved: SavedState) -> list[str]:
        """Take over a saved state, on every process, before the first step.

        Returns notes on differences that are allowed. Raises ConfigError if it would be another run, and
        DataError if more images than data.max_unreadable were unreadable before.
        """
        notes = check_same_run(self.identity, saved.header)
        self.state.load_state_dict(saved)
        self._require_few_unreadable()
        self.is_resumed = True
        return notes

    def saved_state(self) -> SavedState | None:
        """Return the state with the run's identity; None on other ranks than 0. All ranks together."""
        saved = self.state.state_dict()
        return saved and saved._replace(header=saved.header | self.identity.to_header())

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Load this rank's batches of an epoch, counted from 0, from a step on."""
        return batches_of_steps(
            self.config,
            self.network.preprocessing,
            self.train_set,
            first=self.length.updates(epoch, first_step),
            end=self.length.updates(epoch + 1),
            run_end=self.length.steps,
            num_workers=self.num_workers,
        )

    def evaluate(self) -> Evaluation:
        """Evaluate the network with the weights that it has now."""
        data = self.config.data
        predictor = eager_predictor(
            self.network.model,
            self.network.preprocessing,
            num_workers=self.num_workers,
            batch_size=data.batch_size,
            kernels=self.config.kernels,
            activation=self.config.train.activation,
        )
        return evaluate(
            predictor,
            self.eval_set,
            on_error=data.on_error,
            max_unreadable=data.max_unreadable,
            signal=lambda: self.signals.number,
        )

    def train(self, record: RunRecord | None, log: Log) -> dict[str, Any]:
        """Train the remaining epochs, or fewer by train.patience. record: rank 0's.

        Returns the best epoch's line of metrics.jsonl. Raises Stopped, once the state is saved, if a signal
        requests it.
        """
        progress, epochs = self.state.progress, self.length.epochs
        if progress.history and progress.step == 0:
            self._save_weights(record)  # the run may have been killed between a state and its weights
        try:
            while progress.epoch < epochs and not self._is_out_of_patience(log):
                self._train_and_evaluate(record, log)
                self.save(record)
                self._save_weights(record)
        except Stopped:
            self.save(record)
            raise
        if progress.best is None:
            raise ConfigError(
                "No epoch is left to train, and the weights of the best one are not in output_dir. Resume in "
                "the run's own folder."
            )
        return progress.best

    def _is_out_of_patience(self, log: Log) -> bool:
        patience, best = self.config.train.patience, self.state.progress.best
        if patience is None or best is None or self.state.progress.epoch - best["epoch"] < patience:
            return False
        log(f"stopped: no better epoch than {best['epoch']} in train.patience={patience} epochs")
        return True

    def _train_and_evaluate(self, record: RunRecord | None, log: Log) -> None:
        """Train one epoch, or the rest of it, and evaluate it."""
        progress = self.state.progress
        number, epochs = progress.epoch + 1, self.length.epochs
        trained = self.train_one_epoch(record)
        self.state.average_statistics()
        raw = None if self.state.ema is None else self.evaluate()
        with self.state.weights_to_save():
            result = self.evaluate()
        line: dict[str, Any] = {"epoch": number}
        if self.config.train.images is not None:
            line["images"] = self.length.updates(number) * self.global_batch
        line |= trained
        line |= {f"eval_{name}": value for name, value in result.to_dict().items()}
        if raw is not None:
            own = raw.to_dict()
            line |= {f"eval_raw_{name}": own[name] for name in RAW if name in own}
        best = progress.best
        if self.config.model.num_classes > FEW_CLASSES:
            line = {key: value for key, value in line.items() if key not in OF_EACH_CLASS}
        is_best = best is None or self._rank(line) > self._rank(best)
        progress.history.append(line)
        progress.best = line if is_best else best
        progress.epoch, progress.step = number, 0
        more = "" if result.top5 is None else f", top-5 {with_interval(result.top5, result.count)}"
        best_by = self.config.train.measure
        more += "" if best_by == "top1" else f", {MEASURES[best_by]} {line[f'eval_{best_by}']:.4f}"
        log(
            f"epoch {number}/{epochs}: train loss {trained['train_loss']:.4f}, "
            f"eval loss {result.loss:.4f}, {result.top1_name} "
            f"{with_interval(result.top1, result.count, '95%: ')}{more}; "
            f"{trained['images_per_second']:.1f} images/s, {trained['data_wait']:.0%} of the time "
            f"waiting for data{', best so far' if is_best else ''}"
        )

    def _rank(self, line: dict[str, Any]) -> tuple[float, float]:
        """Return what of an epoch's line is compared to find the best one."""
        return line[f"eval_{self.config.train.measure}"], -line["eval_loss"]

    def train_one_epoch(self, record: RunRecord | None) -> dict[str, float]:
        """Make the remaining steps of the running epoch. Returns its line of metrics.jsonl without the
        evaluation. Raises Stopped after a step."""
        state, epoch, first_step = self.state, self.state.progress.epoch, self.state.progress.step
        state.train_mode()
        if first_step == 0:
            state.sums = Sums()
        waited, start = state.sums.waited, time.perf_counter() - state.sums.seconds
        batches = Timed(self.batches(epoch, first_step))
        self.unreadable = batches.unreadable
        title, steps = f"epoch {epoch + 1}/{self.length.epochs}", self.length.steps_of(epoch)
        total, done = (count * self.global_batch for count in (steps, first_step))
        with progress_bar(total, title, self.config.train.log_seconds, initial=done) as bar:
            for step_in_epoch in range(first_step, steps):
                step = self.length.updates(epoch, step_in_epoch)
                rate = state.learning_rate(step)
                update = self.train_step(batches, rate, step)
                self._count(update)
                if update.requests.exchange:
                    self._exchange_unreadable()
                state.sums.seconds, state.sums.waited = time.perf_counter() - start, waited + batches.seconds
                wait = state.sums.waited / state.sums.seconds
                bar.set_postfix_str(
                    f"loss {update.loss:.4f}, lr {rate:.4g}, data wait {wait:.0%}", refresh=False
                )
                bar.update(self.global_batch)
                if record is not None and update.images:
                    record.add_scalars({"train/loss": update.loss, "train/lr": rate}, step + 1)
                state.progress.step = step_in_epoch + 1
                self._stop_or_save(update.requests, record)
        if record is not None and self.config.train.histograms:
            record.add_histograms(state.model, self.length.updates(epoch + 1))
        return self._epoch_line()

    def train_step(self, batches: Iterator[Batch], rate: float, step: int) -> Update:
        """Make one update: see step.py."""
        return train_step(self.state, batches, rate, step, requests=self._requests)

    def _requests(self) -> Requests:
        """Return this rank's requests: to stop after a signal; to save, on rank 0, after so many minutes; to
        exchange unreadable images."""
        minutes = self.config.train.checkpoint_minutes
        is_first = self.state.rank == 0
        is_late = is_first and minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        return Requests(self.signals.number > 0, is_late, bool(self._new_unreadable()))

    def _new_unreadable(self) -> list[Unreadable]:
        """Return this rank's unreadable images that the ranks have not exchanged, if data.max_unreadable asks
        for their number."""
        if self.config.data.max_unreadable is None or not self.unreadable:
            return []
        known = {item.index for item in self.state.progress.unreadable}
        return [item for item in self.unreadable if item.index not in known]

    def _exchange_unreadable(self) -> None:
        """Add the new unreadable images of all ranks to those of the run. Raises DataError if they are more
        than data.max_unreadable."""
        progress = self.state.progress
        shares = distributed.gather(self._new_unreadable())
        found = {item.index: item for share in shares for item in share}
        progress.unreadable += [found[index] for index in sorted(found)]
        self.unreadable.clear()
        self._require_few_unreadable()

    def _require_few_unreadable(self) -> None:
        limit = self.config.data.max_unreadable
        if limit is not None:
            require_within(limit, self.state.progress.unreadable)

    def _stop_or_save(self, requests: Requests, record: RunRecord | None) -> None:
        """Do what any rank requests after a step, and what train.checkpoint_steps requests."""
        if requests.stop:
            raise Stopped(max(distributed.gather(self.signals.number)))
        steps = self.config.train.checkpoint_steps
        if requests.save or (steps is not None and self.state.updates % steps == 0):
            self.save(record)

    def _count(self, update: Update) -> None:
        sums = self.state.sums
        if update.images:
            sums.losses += update.loss * update.images
            sums.images += update.images
        else:
            sums.skipped += 1

    def _epoch_line(self) -> dict[str, float]:
        """Return the mean loss over all images and ranks, the last learning rate, and the speed."""
        state, sums = self.state, self.state.sums
        losses, images = distributed.sum_over_ranks(np.array([sums.losses, sums.images], np.float64))
        values = {
            "train_loss": float(losses / images),
            "lr": state.learning_rate(self.length.updates(state.progress.epoch + 1) - 1),
            "images_per_second": round(float(images) / sums.seconds, 2),
            "data_wait": round(sums.waited / sums.seconds, 4),
        }
        has_skips = self.config.train.on_nan == "skip"
        return values | ({"skipped_updates": int(sums.skipped)} if has_skips else {})

    def save(self, record: RunRecord | None) -> None:
        """Save the state, for the run to be resumed from. All ranks together."""
        saved, best = self.saved_state(), self.state.progress.best
        best_step = None if best is None else self.length.updates(best["epoch"])

        def write(own: RunRecord) -> None:
            if saved is not None:
                own.save_state(saved, self.state.updates, best_step)

        write_together(record, write)
        self.saved_at = time.monotonic()

    def _save_weights(self, record: RunRecord | None) -> None:
        """Write the last whole epoch's line and weights."""
        state = self.state
        with state.weights_to_save():
            write_together(record, lambda own: own.save_epoch(state.model, state.progress, state.updates))
