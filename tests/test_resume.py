"""A resumed run is the run that was interrupted, bit for bit; anything that prevents it is an error."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import yaml
from helpers import HAS_BF16, HAS_ONEDNN, draw_classes
from two_ranks import Normed, are_equal, weights

from ppcls import build_model
from ppcls.build import Network
from ppcls.cli import train
from ppcls.config_files import load_config
from ppcls.data.decode import decode
from ppcls.data.open import open_split
from ppcls.errors import ConfigError, PpclsError, Stopped
from ppcls.evaluation.evaluate import Evaluation, evaluate
from ppcls.files import locked
from ppcls.inference.load import over_network
from ppcls.preprocessing import Preprocessing
from ppcls.training import step as step_module
from ppcls.training.checkpoint import find_state, read_state, states_in, write_state
from ppcls.training.loop import Trainer
from ppcls.training.record import RunRecord, cut_curves

SPEC = Preprocessing(32, 32, "bilinear", False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STEPS = 3  # of an epoch: 24 images, batches of 4, two of them gathered
EVERYTHING = [
    *("train.epochs=3", "train.ema_decay=0.9", "train.accumulate=2", "data.batch_size=4"),
    *("augment.mixup=0.2", "optim.name=rmsprop", "optim.schedule=step", "optim.decay_epochs=1"),
]


class Tiny(Normed):
    """A network that needs all that a step may need, its dropout's random numbers too."""

    model_name, num_classes, bn_epsilon, padding = "EfficientNetB0_small", 3, 1e-3, "same"

    def forward(self, x):
        return super().forward(F.dropout(x, 0.2, training=self.training))


class Killed(BaseException):
    """As by SIGKILL: nobody catches it."""


@pytest.fixture
def config(tmp_path):
    """24 noisy pictures of three classes, and a config."""
    draw_classes(tmp_path / "pictures", 24, 36, 40)
    root = str(tmp_path / "pictures")
    tree = {
        "model": {"name": "EfficientNetB0_small", "num_classes": 3, "bn_momentum": 0.9},
        "data": {"train_root": root, "eval_root": root, "preprocessing": SPEC.to_dict()},
        "output_dir": str(tmp_path / "run"),
        "device": "cpu",
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def make(config, *overrides):
    options = load_config(config, [*EVERYTHING, *overrides])
    data = open_split(options.data, "train", num_classes=3, class_names=None)
    paddle.seed(0)
    return Trainer(options, Network(Tiny(), None, SPEC, None), data, data, 2)


def run(trainer, resume=None):
    """Train to the end, as tools/train.py does; or raise what `at` lets happen."""
    record = RunRecord(trainer.config, trainer.network, trainer.state.updates if resume else None)
    try:
        return trainer.train(record, lambda text: None)
    finally:
        record.close()


def resumed(config, *overrides):
    """A trainer that resumes from the newest good state in output_dir."""
    trainer = make(config, *overrides)
    path = find_state("auto", trainer.config.output_path, lambda text: None)
    trainer.resume(read_state(path))
    return trainer


def at(trainer, step, happening):
    """Call `happening` while the step's update is made."""
    original = trainer.train_step

    def train_step(batches, rate, number):
        if number == step:
            happening()
        return original(batches, rate, number)

    trainer.train_step = train_step
    return trainer


def kill():
    raise Killed


def result(trainer):
    """All tensors of a trainer."""
    return {key: array.copy() for key, array in trainer.saved_state().arrays.items() if key != "ranks"}


def lines_of(folder):
    """metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("images_per_second", "data_wait", "eval_images_per_second")
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def curves_of(folder):
    """{tag: steps} of VisualDL."""
    from visualdl import LogReader

    (path,) = (folder / "visualdl").iterdir()
    reader = LogReader(file_path=str(path))
    return {tag: [item.id for item in reader.get_data("scalar", tag)] for tag in reader.get_tags()["scalar"]}


@pytest.fixture
def whole(config, tmp_path):
    """An uninterrupted run: its tensors, lines and curves."""
    trainer = make(config, f"output_dir={tmp_path / 'whole'}")
    run(trainer)
    return result(trainer), lines_of(tmp_path / "whole"), curves_of(tmp_path / "whole")


@pytest.mark.parametrize("step", range(3 * STEPS))
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(config, tmp_path, whole, step):
    first = make(config)
    with pytest.raises(Stopped):
        run(at(first, step, lambda: first.signals.note(signal.SIGTERM)))
    second = resumed(config)
    assert second.state.updates == step + 1
    run(second, resume=True)
    assert are_equal(result(second), whole[0]) and are_equal(whole[0], result(second))
    assert lines_of(tmp_path / "run") == whole[1] and curves_of(tmp_path / "run") == whole[2]
    # what it saved for eval is the average of the same weights
    with second.state.weights_to_save():
        model = paddle_file(tmp_path / "run/checkpoints/last/model.safetensors")
        assert are_equal(model, weights(second.state))


def paddle_file(path):
    from safetensors.numpy import load_file

    return load_file(path)


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_killed_run_goes_on_from_its_last_state(config, tmp_path, name, step):
    options = [f"optim.name={name}", "train.checkpoint_steps=2"]
    reference = make(config, *options, f"output_dir={tmp_path / 'whole'}")
    run(reference)
    with pytest.raises(Killed):
        run(at(make(config, *options), step, kill))
    if step < 2:
        assert not states_in(tmp_path / "run/checkpoints")
        return
    second = resumed(config, *options)
    assert step - 2 < second.state.updates <= step
    run(second, resume=True)
    assert are_equal(result(second), result(reference))
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")
    assert curves_of(tmp_path / "run") == curves_of(tmp_path / "whole")


CLASSIFIER_FIRST = ["train.freeze_epochs=1", "train.start_from=pretrained", "train.checkpoint_steps=1"]


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_a_run_that_begins_with_its_classifier_goes_on_bit_for_bit(config, tmp_path, name):
    """Killed or stopped while the rest is frozen, at the epoch's end, and after it. Three epochs of three
    steps, of which the first one is the classifier's."""
    options = [*CLASSIFIER_FIRST, f"optim.name={name}", "train.keep_last=99"]
    reference = make(config, *options, f"output_dir={tmp_path / 'whole'}")
    run(reference)
    parts = {"sgd": 1, "adamw": 4, "rmsprop": 3}[name]
    for step in range(1, 9):
        first = make(config, *options, "output_dir=" + str(tmp_path / f"run{step}"))
        end = kill if step % 2 else lambda: first.signals.note(signal.SIGTERM)  # noqa: B023
        with pytest.raises((Killed, Stopped)):
            run(at(first, step, end))
        second = resumed(config, *options, "output_dir=" + str(tmp_path / f"run{step}"))
        assert second.state.updates == step + 1 - step % 2
        run(second, resume=True)
        assert lines_of(tmp_path / f"run{step}") == lines_of(tmp_path / "whole")
        for whole, found in zip(
            states_of(tmp_path / "whole"), states_of(tmp_path / f"run{step}"), strict=True
        ):
            assert are_equal(found, whole) and found.keys() == whole.keys()
    groups = [{key.split("/")[0] for key in state} for state in states_of(tmp_path / "whole")]
    assert groups == [{"weights", "optimizer"}] * 3 + [{"weights", "optimizer", "ema"}] * 6
    counts = [sum(key.startswith("optimizer/") for key in state) for state in states_of(tmp_path / "whole")]
    trained = sum(not parameter.stop_gradient for parameter in reference.state.model.parameters())
    assert counts == [2 * parts] * 3 + [trained * parts] * 6


def states_of(folder):
    """The arrays of a run's states, in their order, without what a clock says."""
    found = [read_state(path).arrays for path in states_in(folder / "checkpoints")]
    return [{key: array for key, array in arrays.items() if key != "ranks"} for arrays in found]


def test_a_run_killed_before_its_weights_are_written_has_them_in_the_end(config, tmp_path, whole):
    first = make(config, "train.epochs=1")
    first._save_weights = lambda record: kill()
    with pytest.raises(Killed):
        run(first)
    assert not (tmp_path / "run/checkpoints/best").exists()
    second = resumed(config, "train.epochs=1")
    assert run(second, resume=True)["epoch"] == 1
    assert lines_of(tmp_path / "run") == whole[1][:1]
    assert {p.parent.name for p in (tmp_path / "run").rglob("model.safetensors")} == {"best", "last"}


def test_a_run_stopped_in_its_evaluation_goes_on_with_it(config, tmp_path, whole):
    first = make(config)
    evaluate = first.evaluate

    def stopped():
        first.signals.note(signal.SIGINT)
        return evaluate()

    first.evaluate = stopped
    with pytest.raises(Stopped) as caught:
        run(first)
    assert caught.value.number == signal.SIGINT
    second = resumed(config)
    assert (second.state.progress.epoch, second.state.progress.step) == (0, STEPS)
    run(second, resume=True)
    assert are_equal(result(second), whole[0]) and lines_of(tmp_path / "run") == whole[1]


def test_a_run_that_is_killed_again_before_its_next_update_loses_nothing(config, whole):
    first = make(config)
    with pytest.raises(Stopped):
        run(at(first, STEPS - 1, lambda: first.signals.note(signal.SIGTERM)))
    with pytest.raises(Killed):
        run(at(resumed(config), STEPS, kill), resume=True)  # it has evaluated, and saved that
    third = resumed(config)
    assert (third.state.progress.epoch, third.state.progress.step) == (1, 0)
    run(third, resume=True)
    assert are_equal(result(third), whole[0])


@pytest.mark.parametrize("is_stopped", [True, False])
def test_weights_that_are_not_finite_are_not_saved(config, tmp_path, whole, is_stopped):
    """An update from a gradient of one NaN, behind a finite loss: in the step that a signal stops, and in the
    last one of an epoch. The run continues from the previous state."""
    first, step = make(config, "train.checkpoint_steps=1"), 4 if is_stopped else 5
    update = first.state.precision.step

    def spoiled(optimizer):
        update(optimizer)
        if first.state.updates == step:
            if is_stopped:
                first.signals.note(signal.SIGTERM)
            weight = first.state.trainable[0]
            weight.set_value(np.full(weight.shape, np.nan, np.float32))

    first.state.precision.step = spoiled
    with pytest.raises(PpclsError, match=f"state-00000000{step + 1}.* not finite.* weights/.*--resume auto"):
        run(first)
    second = resumed(config, "train.checkpoint_steps=1")
    assert second.state.updates == step
    run(second, resume=True)
    assert are_equal(result(second), whole[0]) and lines_of(tmp_path / "run") == whole[1]


def test_updates_left_out_in_a_row_are_remembered(config, monkeypatch):
    first = make(config, "train.on_nan=skip")
    first.state.progress.skipped_in_a_row = 1
    monkeypatch.setattr(step_module, "find_problem", lambda state, loss, norm: "The loss is nan")
    with pytest.raises(Stopped):
        run(at(first, 0, lambda: first.signals.note(signal.SIGTERM)))
    assert resumed(config, "train.on_nan=skip").state.progress.skipped_in_a_row == 2
    with pytest.raises(PpclsError, match="3 times"):
        second = resumed(config, "train.on_nan=skip")
        run(second, resume=True)


def test_a_shorter_last_epoch_without_an_update_ends_the_run(config, monkeypatch):
    """Its mean loss would be 0 / 0."""
    trainer = make(config, *IMAGES, "train.on_nan=skip")
    problem = {2: "The loss is nan"}  # in the last epoch, of two steps
    monkeypatch.setattr(step_module, "find_problem", lambda state, *_: problem.get(state.progress.epoch))
    with pytest.raises(PpclsError, match="at step 11, 2 times"):
        run(trainer)


def test_the_loss_scale_is_kept(config):
    class Scaler:
        state = {"scale": np.array([1024.0], np.float32), "incr_count": 3}

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.loaded = state

    precision = make(config).state.precision
    precision.scaler = Scaler()
    precision.load_state_dict(json.loads(json.dumps(precision.state_dict())))
    assert precision.scaler.loaded["scale"].dtype == np.float32
    assert precision.scaler.loaded == Scaler.state


def test_batches_before_the_step_are_not_decoded(config, tmp_path, monkeypatch):
    trainer = make(config)
    expected = list(trainer.batches(0))[4:]
    read = []
    monkeypatch.setattr("ppcls.data.loader.decode", lambda *given: read.append(1) or decode(*given))
    found = list(trainer.batches(0, first_step=2))
    assert len(read) == 8
    for one, other in zip(expected, found, strict=True):
        assert (one.images == other.images).all() and (one.labels == other.labels).all()


@pytest.fixture
def stopped_run(config, tmp_path):
    """A run of three epochs, stopped in its third, with a state after each step."""
    trainer = make(config, "train.checkpoint_steps=1", "train.keep_last=2")
    with pytest.raises(Stopped):
        run(at(trainer, 7, lambda: trainer.signals.note(signal.SIGTERM)))
    return states_in(tmp_path / "run/checkpoints")


def test_so_many_states_are_kept_and_that_of_the_best_epoch(config, stopped_run):
    steps = [int(path.name[6:15]) for path in stopped_run]
    best = read_state(stopped_run[-1]).header["progress"]["best"]["epoch"] * STEPS
    assert steps == sorted({best, 6, 7, 8})
    assert best in (3, 6)
    assert read_state(stopped_run[0]).header["progress"]["epoch"] * STEPS == steps[0]


def test_a_state_is_written_when_its_minutes_are_over(config, tmp_path):
    with pytest.raises(Killed):
        run(at(make(config, "train.checkpoint_minutes=1e-9"), 2, kill))
    assert [int(path.name[6:15]) for path in states_in(tmp_path / "run/checkpoints")] == [1, 2]
    with pytest.raises(Killed):
        run(at(make(config, f"output_dir={tmp_path / 'other'}"), 2, kill))
    assert not states_in(tmp_path / "other/checkpoints")


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "header"])
def test_a_damaged_state_is_reported_and_the_one_before_taken(config, tmp_path, whole, stopped_run, harm):
    data = bytearray(stopped_run[-1].read_bytes())
    data[len(data) // 2 if harm == "flipped" else 300] ^= 64
    data = {"cut": data[: len(data) // 2], "empty": b""}.get(harm, data)
    stopped_run[-1].write_bytes(data)
    notes = []
    found = find_state("auto", tmp_path / "run", notes.append)
    assert found == stopped_run[-2]
    assert len(notes) == 1 and "state-000000008.safetensors" in notes[0]
    assert stopped_run[-1].with_name("state-000000008.safetensors.damaged").exists()
    second = resumed(config)
    run(second, resume=True)
    assert are_equal(result(second), whole[0])


def test_without_a_good_state_nothing_is_replaced(config, tmp_path, stopped_run):
    for path in stopped_run:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PpclsError, match=f"{tmp_path / 'run'}.*--overwrite"):
        find_state("auto", tmp_path / "run", lambda text: None)
    assert find_state("auto", tmp_path / "nothing", lambda text: None) is None


def test_an_older_state_is_not_gone_on_from_in_its_own_folder(config, tmp_path, stopped_run):
    with pytest.raises(ConfigError, match="state-00000000.*state-000000008.safetensors.*--resume auto"):
        find_state(str(stopped_run[0]), tmp_path / "run", lambda text: None)
    assert find_state(str(stopped_run[0]), tmp_path / "other", lambda text: None) == stopped_run[0]
    with pytest.raises(PpclsError, match="nothing"):
        find_state("nothing", tmp_path / "run", lambda text: None)
    missing = tmp_path / "run/checkpoints/none.safetensors"  # is not older, but not there
    with pytest.raises(PpclsError, match=r"none\.safetensors") as error:
        find_state(str(missing), tmp_path / "run", lambda text: None)
    assert "newer" not in str(error.value)
    last = tmp_path / "run/checkpoints/last/model.safetensors"
    with pytest.raises(PpclsError, match="model.safetensors"):
        find_state(str(last), tmp_path / "run", lambda text: None)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr=0.2", "optim.lr was 0.1, is 0.2"),
        ("data.batch_size=2", "data.batch_size was 4, is 2"),
        ("seed=3", "seed was 0, is 3"),
        ("augment.mixup=0", "augment.mixup was 0.2, is 0.0"),
        ("model.dropout=0.5", "model.dropout was None, is 0.5"),
        ("train.ema_decay=null", "train.ema_decay was 0.9, is None"),
    ],
)
def test_another_config_is_refused(config, stopped_run, override, words):
    with pytest.raises(ConfigError, match=words):
        resumed(config, override)


def test_other_data_are_refused_but_may_have_moved(config, tmp_path, stopped_run):
    (tmp_path / "pictures").rename(tmp_path / "moved")
    moved = [f"data.{name}_root={tmp_path / 'moved'}" for name in ("train", "eval")]
    assert resumed(config, *moved).state.updates == 8
    (tmp_path / "moved/a/0.png").rename(tmp_path / "moved/a/new.png")
    with pytest.raises(ConfigError, match="training data was '.*', is '.*'.*evaluation data was"):
        resumed(config, *moved)


def test_another_preprocessing_is_refused_as_it_is_resolved(config, stopped_run):
    assert resumed(config, "data.preprocessing=null").state.updates == 8  # that of the weights is the same
    trainer = make(config)
    trainer.network = trainer.network._replace(preprocessing=replace(SPEC, antialias=True))
    with pytest.raises(ConfigError, match="data.preprocessing.antialias was False, is True"):
        trainer.resume(read_state(stopped_run[-1]))


def test_another_number_of_processes_is_refused(config, stopped_run):
    trainer = make(config)
    trainer.identity.fingerprint["processes"] = 4
    with pytest.raises(ConfigError, match="processes was 1, is 4"):
        trainer.resume(read_state(stopped_run[-1]))


def test_more_epochs_are_allowed_where_the_rates_stay(config, tmp_path, whole):
    run(make(config, "train.epochs=2"))
    second = resumed(config, "train.epochs=3", "train.log_seconds=3", "data.num_workers=1")
    run(second, resume=True)
    assert are_equal(result(second), whole[0]) and lines_of(tmp_path / "run") == whole[1]
    for schedule in ("cosine", "halving"):
        options = [f"optim.schedule={schedule}", f"output_dir={tmp_path / schedule}"]
        run(make(config, "train.epochs=1", *options))
        with pytest.raises(ConfigError, match=f"train.epochs was 1, is 2.*optim.schedule={schedule}"):
            resumed(config, "train.epochs=2", *options)


IMAGES = ["train.epochs=null", "train.images=90", "train.epoch_images=35", "train.checkpoint_steps=1"]


def test_a_run_of_so_many_images_goes_on_bit_for_bit(config, tmp_path):
    """12 steps of 8 images in epochs of 5, 5 and 2, and passes over the images of 3. Stopped in an epoch, in
    its last step, in the shorter last epoch and in the run's last step."""
    options = [*IMAGES, "optim.schedule=halving", "optim.halvings=4", "train.keep_last=99"]
    reference = make(config, *options, f"output_dir={tmp_path / 'whole'}")
    run(reference)
    expected = states_of(tmp_path / "whole")
    assert len(expected) == 12 == reference.state.updates
    for step in (1, 4, 7, 10, 11):
        folder = tmp_path / f"run{step}"
        first = make(config, *options, f"output_dir={folder}")
        with pytest.raises(Stopped):
            run(at(first, step, lambda: first.signals.note(signal.SIGTERM)))  # noqa: B023
        second = resumed(config, *options, f"output_dir={folder}")
        assert second.state.updates == step + 1
        run(second, resume=True)
        for array, found in zip(expected, states_of(folder), strict=True):
            assert are_equal(found, array)
        assert lines_of(folder) == lines_of(tmp_path / "whole")
        assert curves_of(folder) == curves_of(tmp_path / "whole")
    finished = resumed(config, *options, f"output_dir={folder}")
    assert finished.state.updates == 12
    assert run(finished, resume=True) == finished.state.progress.best
    assert states_of(folder)[-1].keys() == expected[-1].keys() and len(states_of(folder)) == 12


@pytest.mark.parametrize("change", ["train.images=91", "train.epoch_images=40", "optim.halvings=5"])
def test_another_length_in_images_is_another_run(config, tmp_path, change):
    options = [*IMAGES, "optim.schedule=step", "optim.halvings=4"]
    with pytest.raises(Killed):
        run(at(make(config, *options), 2, kill))
    with pytest.raises(ConfigError, match=change.replace("=", " was .* is ")):
        resumed(config, *options, change)


def test_another_thread_count_is_noted(config, stopped_run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    trainer = make(config, "train.checkpoint_steps=1", "train.keep_last=2")
    (note,) = trainer.resume(read_state(stopped_run[-1]))
    assert "OMP_NUM_THREADS" in note and "77" in note


UNEQUAL = ("data.sampling=sqrt", "train.class_weights=balanced", "train.best_by=macro_f1")


@pytest.fixture
def unequal(config, tmp_path):
    """The config with a list that gives 15 of the 24 pictures to class 0, and 2 to class 2."""
    labels = [0] * 15 + [1] * 7 + [2] * 2
    lines = [f"{'abc'[index % 3]}/{index}.png {label}\n" for index, label in enumerate(labels)]
    (tmp_path / "list.txt").write_text("".join(lines))
    tree = yaml.safe_load(config.read_text())
    tree["data"]["train_list"] = str(tmp_path / "list.txt")
    config.write_text(yaml.safe_dump(tree))
    return config


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_run_with_unequal_classes_resumes_bit_for_bit(unequal, tmp_path, step):
    whole = make(unequal, *UNEQUAL, f"output_dir={tmp_path / 'whole'}")
    best = run(whole)
    assert best["eval_macro_f1"] == max(line["eval_macro_f1"] for line in lines_of(tmp_path / "whole"))
    first = make(unequal, *UNEQUAL)
    with pytest.raises(Stopped):
        run(at(first, step, lambda: first.signals.note(signal.SIGTERM)))
    second = resumed(unequal, *UNEQUAL)
    run(second, resume=True)
    assert are_equal(result(second), result(whole)) and are_equal(result(whole), result(second))
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")


@pytest.mark.parametrize(("measure", "epoch"), [("top1", 1), ("balanced_accuracy", 2), ("macro_f1", 3)])
def test_a_measure_decides_the_best_epoch_and_patience(config, tmp_path, measure, epoch):
    """Ten pictures of class 0 and two of class 1: what is right of both, of all taken for class 1."""
    trainer = make(
        config, "train.ema_decay=null", "train.epochs=5", f"train.best_by={measure}", "train.patience=2"
    )
    hits = [(10, 0), (5, 2), (8, 1), (4, 1), (4, 1)]
    evaluations = [
        Evaluation((a + b) / 12, None, 1.0, 12, [], 1.0, np.array([[10, 2], [a + 2 - b, b + 10 - a], [a, b]]))
        for a, b in hits
    ]
    values = [result.to_dict()[measure] for result in evaluations]
    assert epoch == 1 + int(np.argmax(values))
    remaining = iter(evaluations)
    trainer.evaluate = lambda: next(remaining)
    assert run(trainer)["epoch"] == epoch
    assert len(lines_of(tmp_path / "run")) == epoch + 2
    assert curves_of(tmp_path / "run")[f"eval/{measure}"] == [STEPS * (n + 1) for n in range(epoch + 2)]
    record = RunRecord(trainer.config, trainer.network, trainer.state.updates)
    assert record.best_epoch() == epoch
    record.close()


def test_of_the_weights_of_classes_the_values_must_stay(unequal, tmp_path):
    path = tmp_path / "weights.txt"
    path.write_text("1\n2\n4\n")
    first = make(unequal, f"train.class_weights={path}")
    with pytest.raises(Stopped):
        run(at(first, 1, lambda: first.signals.note(signal.SIGTERM)))
    path.write_text("1\n2\n5\n")
    with pytest.raises(ConfigError, match=r"train\.class_weights"):
        resumed(unequal, f"train.class_weights={path}")
    with pytest.raises(ConfigError, match=r"train\.class_weights"):
        resumed(unequal)
    moved = path.rename(tmp_path / "moved.txt")
    moved.write_text("0.5\n1\n2\n")  # in the same ratio
    assert resumed(unequal, f"train.class_weights={moved}").state.updates == 2
    for option in ("data.sampling=sqrt", "train.best_by=macro_f1"):
        with pytest.raises(ConfigError, match=option.partition("=")[0]):
            resumed(unequal, f"train.class_weights={moved}", option)


def test_a_state_of_a_version_without_these_options_resumes(config, tmp_path, whole):
    first = make(config)
    with pytest.raises(Stopped):
        run(at(first, 4, lambda: first.signals.note(signal.SIGTERM)))
    (*_, path) = states_in(tmp_path / "run/checkpoints")
    state = read_state(path)
    tree, header = yaml.safe_load(state.header["config"]), state.header
    del tree["data"]["sampling"], tree["train"]["class_weights"], tree["train"]["best_by"]
    del header["meaning"]["values of train.class_weights"]
    new = ("eval_balanced_accuracy", "eval_macro_f1", "eval_class_recall")
    for line in (*header["progress"]["history"], header["progress"]["best"]):
        for name in new:
            del line[name]
    write_state(path, state._replace(header=header | {"config": yaml.safe_dump(tree)}))
    second = resumed(config)
    run(second, resume=True)
    assert are_equal(result(second), whole[0])
    old, *lines = lines_of(tmp_path / "run")
    assert lines == whole[1][1:] and old == {k: v for k, v in whole[1][0].items() if k not in new}


NEEDS_BF16 = pytest.mark.skipif(not HAS_BF16, reason="oneDNN multiplies in bfloat16 with AMX")


@pytest.fixture
def on_onednn(monkeypatch):
    """EfficientNetB0_small in place of Tiny, which has Paddle's kernels."""
    build = partial(build_model, "EfficientNetB0_small", num_classes=3, bn_momentum=0.9)
    monkeypatch.setattr(sys.modules[__name__], "Tiny", build)
    if not HAS_ONEDNN:
        pytest.skip("this Paddle comes without oneDNN's library")


@pytest.mark.parametrize("kernels", ["onednn", pytest.param("onednn-bf16", marks=NEEDS_BF16)])
def test_a_run_on_onednn_goes_on_bit_for_bit(config, tmp_path, on_onednn, kernels):
    options = ["train.epochs=2", f"kernels={kernels}"]
    reference = make(config, *options, f"output_dir={tmp_path / 'whole'}")
    run(reference)
    first = make(config, *options)
    with pytest.raises(Stopped):
        run(at(first, 3, lambda: first.signals.note(signal.SIGTERM)))
    second = resumed(config, *options)
    run(second, resume=True)
    assert second.state.kernels.name.startswith("oneDNN")
    assert second.state.kernels.bf16 == (kernels == "onednn-bf16")
    assert are_equal(result(second), result(reference))
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")


def test_other_kernels_are_noted(config, on_onednn):
    saved = make(config).saved_state()
    was = saved.header["bits"]["kernels"]
    assert was.startswith("oneDNN 3")
    option, note = make(config, "kernels=paddle").resume(saved)
    assert "kernels was auto, is paddle" in option.replace("'", "")
    assert f"kernels was {was}, is Paddle's" in note and "last bits" in note
    del saved.header["bits"]["kernels"]  # as in states from before there was a choice
    assert make(config, "kernels=paddle").resume(saved) == [option]


@NEEDS_BF16
def test_products_in_bfloat16_are_noted_and_end_with_the_run(config, on_onednn):
    """Evaluation within training uses them too; the same network evaluated by itself does not."""
    trainer = make(config, "kernels=onednn-bf16")
    saved = trainer.saved_state()
    was = saved.header["bits"]["kernels"]
    exact = make(config, "kernels=onednn")
    option, note = exact.resume(saved)
    assert "onednn-bf16" in option and f"kernels was {was}, is oneDNN 3" in note
    assert make(config, "kernels=onednn-bf16").resume(saved) == []
    losses = [own.evaluate().loss for own in (trainer, exact)]
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 1e-2
    alone = evaluate(over_network(trainer.config, trainer.network), trainer.eval_set)
    assert alone.loss == losses[1]


def test_patience_and_the_end_are_known_after_a_resume(config, tmp_path):
    options = ["train.patience=1", "optim.lr=1e-30", "optim.weight_decay=0", "train.ema_decay=null"]
    first = make(config, *options, "train.freeze=['*._mean', '*._variance']")
    always = first.evaluate()
    first.evaluate = lambda: always
    run(first)
    count = len(lines_of(tmp_path / "run"))
    assert count == 2
    second = resumed(config, *options, "train.freeze=['*._mean', '*._variance']")
    assert run(second, resume=True)["epoch"] == 1
    assert len(lines_of(tmp_path / "run")) == count


def test_a_state_that_cannot_be_written_leaves_the_others_whole(config, tmp_path):
    trainer = make(config, "train.checkpoint_steps=2")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = 2000  # smaller than a state, larger than the curves so far

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    try:
        with pytest.raises(PpclsError, match="state-000000004.safetensors .*File too large"):
            run(at(trainer, 3, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found = states_in(tmp_path / "run/checkpoints")
    assert [path.name for path in found] == ["state-000000002.safetensors", "state-000000003.safetensors"]
    assert [read_state(path).header["progress"]["step"] for path in found] == [2, 0]
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_disk_that_is_full_half_way_leaves_nothing_half_written(config, tmp_path, monkeypatch):
    def save_half(arrays, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = make(config, "train.checkpoint_steps=2")
    with pytest.raises(PpclsError, match="state-000000004.safetensors .*No space left"):
        run(at(trainer, 3, lambda: monkeypatch.setattr("safetensors.numpy.save_file", save_half)))
    found = [path for path in (tmp_path / "run/checkpoints").iterdir() if path.is_file()]
    assert {path.name[14] for path in found if read_state(path)} == {"2", "3"}


@pytest.mark.skipif(os.name != "posix", reason="folders of Windows are not read-only")
def test_a_read_only_folder_is_an_error_that_says_so(config, tmp_path):
    trainer = make(config, "train.checkpoint_steps=2")
    folder, user, save = tmp_path / "run/checkpoints", os.geteuid(), trainer.save

    def save_without_the_right_to(record):
        folder.chmod(0o555)
        os.seteuid(user or 65534)  # root may write anywhere
        try:
            save(record)
        finally:
            os.seteuid(user)
            folder.chmod(0o755)

    with pytest.raises(PpclsError, match="state-000000004.safetensors .*ermission denied"):
        run(at(trainer, 3, lambda: setattr(trainer, "save", save_without_the_right_to)))
    assert [path.name[14] for path in states_in(folder)] == ["2", "3"]


def test_what_a_killed_process_has_half_written_is_cleared_away(config, tmp_path, stopped_run):
    names = ("checkpoints/.state-000000009.safetensors.123", "checkpoints/last/.model.safetensors.123")
    names += (".metrics.jsonl.123", ".train.yaml.123")
    for name in names:
        (tmp_path / "run" / name).write_bytes(b"half")
    run(resumed(config), resume=True)
    assert not [name for name in names if (tmp_path / "run" / name).exists()]


def test_a_second_run_into_the_same_folder_is_refused(config, tmp_path):
    with locked(tmp_path / "run"):
        code = "import sys; from ppcls.commands import run; from ppcls.cli.train import main; run(main)"
        other = subprocess.run(
            [sys.executable, "-c", code, "-c", str(config)], capture_output=True, text=True, check=False
        )
    assert other.returncode == 2
    for part in (str(tmp_path / "run"), f"process {os.getpid()} on ", "-o output_dir=DIR"):
        assert part in other.stderr
    with locked(tmp_path / "run"):
        pass


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output_dir.*file is not a folder"), locked(tmp_path / "file"):
        pass


def test_a_folder_in_which_nothing_is_written_is_removed(tmp_path):
    """As after an error before the first step."""
    made, kept = tmp_path / "output" / "run", tmp_path / "kept"
    with pytest.raises(PpclsError, match="no data"), locked(made):
        raise PpclsError("no data")
    assert list(tmp_path.iterdir()) == []
    kept.mkdir()
    with locked(kept):
        pass
    with locked(made):
        (made / "train.yaml").touch()
    assert sorted(os.listdir(made)) == ["run.lock", "train.yaml"] and os.listdir(kept) == ["run.lock"]


SIGNALS = """
import signal
from ppcls.training import signals as module
from ppcls.training.signals import StopSignals

gone, clock = [], [100.0]
module.time.monotonic = lambda: clock[0]
module.os._exit = gone.append
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
with StopSignals() as signals:
    signal.raise_signal(signal.SIGTERM)
    for clock[0] in (100.2, 100.4, 102.9):
        signal.raise_signal(signal.SIGTERM)
    assert signals.number == signal.SIGTERM and not gone
    clock[0] = 103.1
    signal.raise_signal(signal.SIGINT)
    assert gone == [130]
assert signal.getsignal(signal.SIGTERM) == signals.note  # until the process is gone
for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
    signal.signal(number, handler)
with StopSignals():
    pass
assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
print("all as it should be")
"""


def test_a_signal_is_noted_once_and_a_late_second_one_ends_the_process():
    """In a process of its own: this one has engines' threads, and handlers that others have set."""
    run = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, check=False)
    assert run.stdout == "all as it should be\n", run.stderr
    assert run.stderr.count("SIGTERM: saving after this step") == 1


def test_curves_that_were_cut_off_lose_their_last_record(config, tmp_path, stopped_run):
    (path,) = (tmp_path / "run/visualdl").iterdir()
    before = curves_of(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-3])
    cut_curves(path, 6)
    after = curves_of(tmp_path / "run")
    assert before["train/loss"] == list(range(1, 9)) and after["train/loss"] == list(range(1, 7))
    assert before["eval/loss"] == [3, 6] and after["eval/loss"] == [3]  # the 6th step's is written again


def test_raw_and_averaged_weights_are_evaluated_and_drawn(config, tmp_path):
    run(make(config, "train.histograms=true", "train.epochs=1"))
    (line,) = lines_of(tmp_path / "run")
    assert line["eval_loss"] != line["eval_raw_loss"]
    curves = curves_of(tmp_path / "run")
    assert curves["eval_raw/loss"] == curves["eval/top1"] == [STEPS]
    from visualdl import LogReader

    (path,) = (tmp_path / "run/visualdl").iterdir()
    histograms = set(LogReader(file_path=str(path)).get_tags()["histogram"])
    assert {"weights/fc.weight", "gradients/fc.weight", "gradients/first.bn.bias"} <= histograms
    assert not any("_mean" in tag for tag in histograms)


def options(*pairs):
    return [text for pair in pairs for text in ("-o", pair)]


def test_the_tool_resumes_and_says_what_it_does(config, tmp_path, capsys):
    base = ["-c", str(config), *options("data.batch_size=8", "train.checkpoint_steps=1", "train.keep_last=9")]
    with pytest.raises(ConfigError, match="--resume .*--overwrite"):
        train.main([*base, "--resume", "auto", "--overwrite"])
    one = [*base, *options("train.epochs=1", "optim.schedule=step")]
    assert train.main([*one, *options("data.allow_overlap=true"), "--resume", "auto"]) == 0
    assert f"{tmp_path / 'run'} holds no state" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--resume auto"):
        train.main(one)
    assert train.main([*one, "--resume", "auto"]) == 0
    out = capsys.readouterr().out
    assert "state-000000003.safetensors is finished: 1 of 1 epochs" in out and "best top-1" in out
    assert "note: 24 of 24 evaluation images are training images too" in out  # no error in a resumed run
    # from an older state into another folder, where the best weights are not
    first = tmp_path / "run/checkpoints/state-000000003.safetensors"
    other = options("train.epochs=2", f"output_dir={tmp_path / 'other'}")
    assert train.main([*one, *other, "--resume", str(first)]) == 0
    out = capsys.readouterr().out
    assert "note: train.epochs was 1, is 2" in out and "resumed at epoch 2, step 0 of 3" in out
    assert [line["epoch"] for line in lines_of(tmp_path / "other")] == [1, 2]
    within = tmp_path / "other/checkpoints/state-000000004.safetensors"
    third = options("train.epochs=2", f"output_dir={tmp_path / 'third'}")
    assert train.main([*one, *third, "--resume", str(within)]) == 0
    assert "note: the weights of the best epoch, 1," in capsys.readouterr().out
    from visualdl import LogReader

    (path,) = (tmp_path / "run/visualdl").iterdir()
    assert LogReader(file_path=str(path)).get_tags()["image"] == ["train/samples"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_runs_end_as_the_one_that_was_not(tmp_path, ranks):
    """SIGKILL, SIGTERM and SIGINT at random moments: tests/kill_training.py, which can run more of them."""
    script = [sys.executable, str(Path(__file__).with_name("kill_training.py"))]
    kills = {1: "3", 2: "2"}[ranks]
    arguments = ["--kills", kills, "--ranks", str(ranks), "--folder", str(tmp_path), "--seed", "1"]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
