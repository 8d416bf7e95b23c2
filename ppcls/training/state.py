"""The state of a training run: everything that the next step depends on.

Random numbers are not part of it. Each step draws its own from (seed, epoch, step, rank).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppcls import distributed
from ppcls.config import Config
from ppcls.data.loader import Unreadable
from ppcls.errors import ConfigError, PpclsError
from ppcls.onednn import resolve_kernels
from ppcls.processor import keep_freed_memory
from ppcls.training.ema import ModelEma
from ppcls.training.length import global_batch, resolve_length
from ppcls.training.optimizer import build_optimizer, load_optimizer_state, optimizer_state, trainable
from ppcls.training.parameters import batch_norm_statistics, freeze, is_in_classifier
from ppcls.training.precision import Precision
from ppcls.training.schedule import learning_rate, scaled_lr

if TYPE_CHECKING:
    from paddle import Tensor, nn
    from paddle.optimizer import Optimizer


@dataclass
class Sums:
    """Sums over the steps of the running epoch, on one process."""

    losses: float = 0.0
    images: float = 0.0
    skipped: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0  # part of the seconds: waiting for data


@dataclass
class Progress:
    """The position of a run.

    epoch: epochs that are trained, evaluated and in `history`. step: updates of the running epoch, skipped
    ones too; after the last one only the evaluation is missing. history: the lines of metrics.jsonl.
    best: the best epoch's line. unreadable: with data.max_unreadable, the training images that no process
    could read, each once.
    """

    epoch: int = 0
    step: int = 0
    skipped_in_a_row: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    unreadable: list[Unreadable] = field(default_factory=list)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Progress":
        """Return the position that `asdict` made plain, also if it has been through JSON."""
        unreadable = [Unreadable(**item) for item in values.get("unreadable", ())]
        return Progress(**values | {"unreadable": unreadable})


class SavedState(NamedTuple):
    """A state as a file holds it.

    arrays: "weights/", "ema/" and "optimizer/" with structured names, and "ranks", float64 [processes, N],
    what each process has of its own: Sums and batch-norm statistics. header: the rest, as JSON.
    """

    arrays: dict[str, np.ndarray]
    header: dict[str, Any]


class TrainState:
    """A network with everything that an update changes, and the position of the run.

    model: the plain network. kernels: those that it runs on. local: the network on its kernels. network: what
    a step runs, `local` or its data-parallel wrapper. trainable: the parameters that are trained. frozen:
    layers that stay in eval mode. statistics: batch norm's, float32 [C] each. steps_per_epoch, length: random
    numbers and learning rates of a step depend on them. class_weights: [C], in the loss; None for equal ones.
    is_head_only: the classifier alone is trained, as in the first train.freeze_epochs. Then there is no
    moving average, and no data-parallel wrapper.
    """

    network: "nn.Layer"
    trainable: "list[Tensor]"
    frozen: "list[nn.Layer]"

    def __init__(
        self,
        config: Config,
        model: "nn.Layer",
        steps_per_epoch: int,
        class_weights: np.ndarray | None = None,
    ) -> None:
        import paddle

        if paddle.get_device() == "cpu":
            keep_freed_memory()
        train = config.train
        self.config, self.model, self.steps_per_epoch = config, model, steps_per_epoch
        self.length = resolve_length(config, steps_per_epoch)
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.precision = Precision(train)
        self.class_weights: Tensor | None = None
        if class_weights is not None:
            self.class_weights = paddle.to_tensor(class_weights.astype(np.float32))
        if train.sync_bn and self.world_size > 1:
            from ppcls.training.sync_bn import use_sync_bn

            use_sync_bn(model)
        obstacle = f"train.amp={train.amp}" if train.amp else None
        self.kernels = resolve_kernels(config.kernels, model, obstacle)
        self.local = self.kernels.network(model)
        if train.recompute:
            from ppcls.training.recompute import recompute_blocks

            recompute_blocks(self.local)
        self._always_frozen = freeze(model, train.freeze)
        self._backbone = {name: p for name, p in trainable(model).items() if not is_in_classifier(name)}
        self.statistics = batch_norm_statistics(model)
        self.peak_lr = scaled_lr(config.optim, global_batch(config))
        self.optimizer: Optimizer = build_optimizer(config.optim, model, self.peak_lr)
        self.ema: ModelEma | None = None
        self.progress, self.sums = Progress(), Sums()
        # The loaded state of the optimizer. Paddle 2.6 returns it only after the next update.
        self._awaiting_update: dict[str, Tensor] = {}
        self.is_head_only: bool | None = None
        self._begin_epoch(0)

    @property
    def updates(self) -> int:
        """Updates since the run began, skipped ones too."""
        return self.length.updates(self.progress.epoch, self.progress.step)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs."""
        optim, freeze_epochs = self.config.optim, self.config.train.freeze_epochs
        return learning_rate(
            optim, self.peak_lr, step, self.steps_per_epoch, self.length.steps, freeze_epochs
        )

    def _begin_epoch(self, epoch: int) -> None:
        """Freeze all but the classifier before the first of train.freeze_epochs. Before the first epoch after
        them, train it all, and begin the moving average. Do nothing before other epochs."""
        import paddle

        train = self.config.train
        is_head_only = epoch < train.freeze_epochs
        if is_head_only == self.is_head_only:
            return
        self.is_head_only = is_head_only
        for parameter in self._backbone.values():
            parameter.stop_gradient = is_head_only
        self.trainable = list(trainable(self.model).values())
        if not self.trainable:
            raise ConfigError(
                "train.freeze_epochs trains the classifier alone, which train.freeze freezes. Received: "
                f"{train.freeze_epochs} and {list(train.freeze)}; set train.freeze_epochs=0."
            )
        named = self.model.named_sublayers() if is_head_only else ()
        self.frozen = self._always_frozen + [layer for name, layer in named if not is_in_classifier(name)]
        if self.world_size > 1 and not is_head_only:
            self.network = paddle.DataParallel(self.local)  # it knows the parameters trained at this moment
        else:
            self.network = self.local
        if train.ema_decay is not None and not is_head_only:
            self.ema = ModelEma(self.model, train.ema_decay)

    def train_mode(self) -> None:
        """Put the network into training mode for the running epoch, except for its frozen layers."""
        self._begin_epoch(self.progress.epoch)
        self.network.train()
        for layer in self.frozen:
            layer.eval()

    def average_statistics(self) -> None:
        """Give all processes the mean of their batch-norm statistics: each has seen its own images."""
        if self.world_size == 1:
            return
        flat = distributed.sum_over_ranks(np.concatenate([tensor.numpy() for tensor in self.statistics]))
        _fill(self.statistics, flat / self.world_size)

    @contextmanager
    def weights_to_save(self) -> Iterator[None]:
        """Inside, the network has the weights to evaluate and to save: with train.ema_decay the averages."""
        self.average_statistics()
        if self.ema is None:
            yield
            return
        with self.ema.swapped():
            self.average_statistics()
            yield

    def state_dict(self) -> SavedState | None:
        """Return the state between two updates; None on other ranks than 0. All ranks call it together."""
        statistics = [tensor.numpy() for tensor in self._own_statistics()]
        ranks = distributed.rows_of_ranks(np.concatenate([astuple(self.sums), *statistics]))
        if self.rank != 0:
            return None
        optimizer = optimizer_state(self.optimizer, self.model)
        if optimizer:
            self._awaiting_update = {}
        groups = {
            "weights": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
            "optimizer": optimizer or self._awaiting_update,
        }
        arrays = {
            f"{group}/{name}": t.numpy() for group, named in groups.items() for name, t in named.items()
        }
        header = {
            "progress": asdict(self.progress),
            "ema_updates": self.ema.updates if self.ema else None,
            "scaler": self.precision.state_dict(),
        }
        return SavedState(arrays | {"ranks": ranks}, header)

    def load_state_dict(self, saved: SavedState) -> None:
        """Take over a saved state, on every process, before the first step.

        Raises PpclsError for the state of another network.
        """
        groups = _tensors(saved.arrays)
        own = self.model.state_dict()
        shapes, found = ({k: list(t.shape) for k, t in named.items()} for named in (own, groups["weights"]))
        if shapes != found:
            raise PpclsError(
                "The state holds the weights of another network. Resume with the config that it was saved by."
            )
        for name, tensor in own.items():
            tensor.set_value(groups["weights"][name])
        self.progress = Progress.from_dict(saved.header["progress"])
        last_updated = self.progress.epoch if self.progress.step else max(self.progress.epoch - 1, 0)
        self._begin_epoch(last_updated)
        if self.ema:
            self.ema.load_state_dict(groups["ema"], saved.header["ema_updates"])
        if groups["optimizer"]:  # there is none before the first update
            late = self._backbone if self.config.train.freeze_epochs else {}
            load_optimizer_state(self.optimizer, self.model, groups["optimizer"], late)
            self._awaiting_update = groups["optimizer"]
        self.precision.load_state_dict(saved.header["scaler"])
        row, count = saved.arrays["ranks"][self.rank], len(fields(Sums))
        self.sums = Sums(*row[:count].tolist())
        _fill(self._own_statistics(), row[count:])

    def _own_statistics(self) -> "list[Tensor]":
        """Return batch norm's statistics and their averages: between epochs each process has its own."""
        if self.ema is None:
            return self.statistics
        ids = {id(statistic) for statistic in self.statistics}
        names = [name for name, parameter in self.ema.parameters.items() if id(parameter) in ids]
        return self.statistics + [self.ema.averages[name] for name in names]


def _tensors(arrays: Mapping[str, np.ndarray]) -> "dict[str, dict[str, Tensor]]":
    """Return the arrays of a state as tensors, by their groups."""
    import paddle

    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "ema": {}, "optimizer": {}}
    for key, array in arrays.items():
        group, _, name = key.partition("/")
        if group in groups:
            groups[group][name] = paddle.to_tensor(array)
    return groups


def _fill(tensors: "list[Tensor]", flat: np.ndarray) -> None:
    """Set vectors to the values of one array, which holds them one behind the other."""
    start = 0
    for tensor in tensors:
        size = tensor.shape[0]
        tensor.set_value(flat[start : start + size].astype(np.float32))
        start += size
