"""The training loop learns, repeats itself exactly, and leaves a run that can be used."""

import json
import math
import shlex
from bisect import bisect_right
from fractions import Fraction

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file

from ppcls import build_model, load_weights
from ppcls.cli import train
from ppcls.config import OptimConfig
from ppcls.config_files import load_config
from ppcls.data.open import open_split
from ppcls.errors import ConfigError, DataError, PpclsError
from ppcls.intervals import wilson
from ppcls.training.batches import batches_of_steps, train_batches
from ppcls.training.length import RunLength
from ppcls.training.optimizer import build_optimizer
from ppcls.training.schedule import learning_rate, scaled_lr
from ppcls.training.step import cross_entropy
from ppcls.weights import metadata_of, write_weights

COLOURS = {"blue": (200, 60, 40), "red": (40, 60, 200)}


@pytest.fixture
def colours(tmp_path):
    """A config, and 24 noisy pictures of two classes that differ by their colour."""
    random = np.random.RandomState(0)
    for index in range(24):
        name = ("blue", "red")[index % 2]
        image = np.clip(random.normal(COLOURS[name], 25, (40, 40, 3)), 0, 255).astype(np.uint8)
        folder = tmp_path / "colours" / name
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index:02d}.png"), image)
    tree = {
        "model": {"name": "EfficientNetB0_small", "num_classes": 2, "bn_momentum": 0.5, "dropout": 0.0},
        "data": {
            "train_root": str(tmp_path / "colours"),
            "eval_root": str(tmp_path / "colours"),
            "allow_overlap": True,
            "batch_size": 8,
            "num_workers": 2,
            "preprocessing": {
                "resize_short": 32,
                "crop_size": 32,
                "interpolation": "bilinear",
                "antialias": False,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
            },
        },
        "augment": {"crop_area": [0.6, 1.0]},
        "train": {"epochs": 2},
        "optim": {"lr": 0.64},
        "output_dir": str(tmp_path / "run"),
        "device": "cpu",
    }
    path = tmp_path / "colours.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(config, *overrides, options=()):
    arguments = ["-c", str(config), *options]
    for override in overrides:
        arguments += ["-o", override]
    return train.main(arguments)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_leaves_a_whole_run(colours, tmp_path, capsys):
    assert run(colours, "train.epochs=5") == 0
    folder = tmp_path / "run"
    lines = lines_of(folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    losses = [line["train_loss"] for line in lines]  # at this rate it may rise again, with any kernels
    assert min(losses) < 0.85 * losses[0]
    best = max(line["eval_top1"] for line in lines)
    assert best >= 0.9
    said = capsys.readouterr().out
    assert f"best top-1 {best:.4f}" in said
    for part in ("train", "eval"):
        assert f"{part}: classes: 2; fewest images: 12 (blue), most: 12 (blue)\n" in said
    assert str(folder / "curves.png") in said and "images/s\n" in said
    assert (folder / "curves.png").stat().st_size > 10_000
    assert load_config(folder / "train.yaml").train.epochs == 5
    assert list((folder / "visualdl").iterdir())
    for name in ("last", "best"):
        model = build_model("EfficientNetB0_small", num_classes=2)
        info = load_weights(model, str(folder / "checkpoints" / name / "model.safetensors"))
        assert info.class_names == (("blue", "blue"), ("red", "red"))
        assert info.preprocessing.crop_size == 32


def test_the_same_seed_gives_the_same_weights_whatever_the_workers(colours, tmp_path):
    weights = []
    for number, workers in enumerate((1, 3)):
        output = tmp_path / f"run{number}"
        run(colours, f"output_dir={output}", f"data.num_workers={workers}", "train.epochs=1")
        weights.append(load_file(output / "checkpoints/last/model.safetensors"))
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    run(colours, f"output_dir={tmp_path / 'run2'}", "seed=1", "train.epochs=1")
    other = load_file(tmp_path / "run2/checkpoints/last/model.safetensors")
    assert (other["fc.weight"] != weights[0]["fc.weight"]).any()


def test_a_list_of_fewer_classes_than_the_network_has_is_shown(colours, tmp_path, capsys):
    lines = [f"blue/{number:02d}.png 0\n" for number in range(0, 24, 2)] + ["red/01.png 1\n"]
    (tmp_path / "list.txt").write_text("".join(lines))
    overrides = [f"data.{part}_list={tmp_path / 'list.txt'}" for part in ("train", "eval")]
    overrides += ["model.num_classes=1000", "data.class_names=imagenet1k"]
    assert run(colours, *overrides, options=["--check"]) == 0
    said = capsys.readouterr().out
    assert "train: classes: 2 of 1000; fewest images: 1 (goldfish" in said and "most: 12 (tench" in said
    assert "998 without an image: great white shark" in said and "model.num_classes=2" in said
    with pytest.raises(DataError, match=r"list\.txt.*data\.train_root="):
        run(colours, *overrides, f"data.train_root={tmp_path}", options=["--check"])


def test_the_classes_keep_the_order_and_the_names_of_the_weights(colours, tmp_path):
    model = build_model("EfficientNetB0_small", num_classes=2)
    arrays = {key: parameter.numpy() for key, parameter in model.state_dict().items()}
    names = (("red", "warm"), ("blue", "cold"))  # not the sorted order, and shown under other names
    write_weights(tmp_path / "w", arrays, metadata_of(model, class_names=names))
    run(colours, f"train.start_from={tmp_path / 'w'}", "train.epochs=1")
    last = tmp_path / "run/checkpoints/last/model.safetensors"
    assert load_weights(model, str(last)).class_names == names
    from ppcls.cli import infer

    assert (
        infer.main(["-c", str(colours), "-o", f"model.weights={last}", "-i", str(tmp_path / "colours")]) == 0
    )


def test_the_command_named_at_the_end_works(colours, tmp_path, capsys):
    model = build_model("EfficientNetB0_small", num_classes=5)
    arrays = {key: parameter.numpy() for key, parameter in model.state_dict().items()}
    write_weights(tmp_path / "w", arrays, metadata_of(model))
    run(colours, f"train.start_from={tmp_path / 'w'}", "train.reset_head=true", "train.epochs=1")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert shlex.split(line)[1:] == ["ppcls", "eval", str(tmp_path / "run")]
    from ppcls.cli import eval as evaluate

    assert evaluate.main(shlex.split(line)[3:]) == 0


def test_a_checkpoint_is_predicted_under_its_own_names(colours, tmp_path, capsys):
    model = build_model("EfficientNetB0_small", num_classes=2)
    arrays = {key: parameter.numpy() for key, parameter in model.state_dict().items()}
    metadata = metadata_of(model, class_names=[("n1", "warm"), ("n2", "cold")])
    write_weights(tmp_path / "w", arrays, metadata)
    from ppcls.cli import infer

    picture = next((tmp_path / "colours" / "red").iterdir())
    infer.main(["-c", str(colours), "-o", f"model.weights={tmp_path / 'w'}", "-i", str(picture)])
    assert "warm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("model.weights=pretrained", "train.start_from"),
        ("model.weights=null", "train.start_from"),
        ("model.variant=x", "train.start_variant"),
        ("model.averaged=false", "train.start_averaged"),
        ("model={name: EfficientNetB0_small, num_classes: 2, weights: w}", "train.start_from"),
        ("model.reset_head=true", "train.reset_head"),
    ],
)
def test_an_override_of_earlier_versions_gets_the_option_of_today(colours, tmp_path, override, option):
    with pytest.raises(ConfigError, match=option):
        run(colours, override)
    assert not (tmp_path / "run").exists()


def test_weights_to_evaluate_are_not_what_training_starts_from(colours, tmp_path, capsys):
    tree = yaml.safe_load(colours.read_text())
    tree["model"] |= {"weights": str(tmp_path / "nothing"), "variant": "nobody/nothing"}
    colours.write_text(yaml.safe_dump(tree))
    assert run(colours, "train.epochs=1") == 0
    assert "train.start_from is null" in capsys.readouterr().out
    written = yaml.safe_load((tmp_path / "run/train.yaml").read_text())
    assert written["model"]["weights"] is None and written["model"]["variant"] is None


def test_check_writes_nothing(colours, tmp_path, capsys):
    assert run(colours, options=["--check"]) == 0
    assert "[8, 3, 32, 32]" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_an_earlier_run_is_not_overwritten_unless_asked(colours, tmp_path):
    run(colours, "train.epochs=1")
    with pytest.raises(ConfigError, match=f"{tmp_path / 'run'} .*--resume.*output_dir.*--overwrite"):
        run(colours, "train.epochs=1")
    assert run(colours, "train.epochs=1", options=["--overwrite"]) == 0
    assert len(lines_of(tmp_path / "run")) == 1


def test_a_loss_that_is_not_finite_stops_the_run(colours):
    with pytest.raises(PpclsError, match="(nan|inf) at step.*optim.lr"):
        run(colours, "optim.lr=1e30", "optim.weight_decay=0", "train.epochs=4")


def test_the_papers_recipe_runs_and_saves_what_it_evaluates(colours, tmp_path):
    run(
        colours,
        "optim={name: rmsprop, lr: 0.016, schedule: exponential, warmup_epochs: 0.5, clip_norm: 5}",
        "train={epochs: 2, ema_decay: 0.9999, accumulate: 2, recompute: true, label_smoothing: 0.1}",
        "data.batch_size=4",
    )
    from ppcls.cli import eval as evaluate

    weights = tmp_path / "run/checkpoints/last/model.safetensors"
    output = tmp_path / "eval"
    options = ["-o", f"model.weights={weights}", "-o", f"output_dir={output}"]
    evaluate.main(["-c", str(colours), *options, "--engine", "eager"])
    result, (_, last) = json.loads((output / "metrics.json").read_text()), lines_of(tmp_path / "run")
    assert result["loss"] == pytest.approx(last["eval_loss"], rel=1e-5)
    assert result["top1"] == last["eval_top1"]


def test_unequal_classes_are_hinted_at_and_their_recalls_are_shown(colours, tmp_path, capsys):
    """Of 12 and 2 pictures to train on, and 12 of each to evaluate."""
    lines = [f"blue/{n:02d}.png 0\n" for n in range(0, 24, 2)] + ["red/01.png 1\n", "red/03.png 1\n"]
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "names.txt").write_text("blue\nred\n")
    options = [f"data.train_list={tmp_path / 'list.txt'}", f"data.class_names={tmp_path / 'names.txt'}"]
    options += ["data.batch_size=7", "optim.lr=0.1"]
    assert run(colours, *options, options=["--check"]) == 0
    said = capsys.readouterr().out
    assert "6 times" in said and "data.sampling" in said and "train.class_weights" in said
    output = tmp_path / "run"
    options += ["train.best_by=balanced_accuracy", "data.sampling=balanced", "train.patience=1"]
    run(colours, *options, "train.class_weights=balanced", "train.epochs=3")
    said, lines = capsys.readouterr().out, lines_of(output)
    assert "data.sampling=balanced or sqrt" not in said
    best = max(lines, key=lambda line: (line["eval_balanced_accuracy"], -line["eval_loss"]))
    assert best["eval_balanced_accuracy"] == pytest.approx(np.mean(best["eval_class_recall"]))
    assert len(lines) == min(best["epoch"] + 1, 3)
    assert (
        f"best balanced accuracy {best['eval_balanced_accuracy']:.4f}, top-1 {best['eval_top1']:.4f}" in said
    )
    bounds = best["eval_class_recall_interval"]
    assert bounds == [list(wilson(round(12 * recall), 12)) for recall in best["eval_class_recall"]]
    recalls = zip(("blue", "red"), best["eval_class_recall"], bounds, strict=True)
    shown = (f"{name} {recall:.4f} ({low:.2f} to {high:.2f})" for name, recall, (low, high) in recalls)
    assert f"recall of each class: {', '.join(shown)}\n" in said
    low, high = best["eval_top1_interval"]
    shown = f"top-1 {best['eval_top1']:.4f} (95%: {low:.4f} to {high:.4f})"
    assert said.count(shown) >= 2  # behind its epoch, and at the end
    assert f"{low:.4f} to {high:.4f}" in said.split("images/s\n")[-1]  # in the table
    from ppcls.cli import eval as evaluate

    evaluate.main(["-c", str(output), "-o", f"output_dir={tmp_path / 'eval'}", "--engine", "eager"])
    said = capsys.readouterr().out
    shown = zip(("blue", "red"), best["eval_class_recall"], strict=True)
    assert all(f"{name} {recall:.4f} (" in said for name, recall in shown)
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert metrics["class_recall"] == best["eval_class_recall"]
    assert train.main([str(output), "--resume", "auto"]) == 0  # the run by its folder keeps its names
    assert "data.class_names was" not in capsys.readouterr().out
    assert load_config(output / "train.yaml").data.class_names == str(tmp_path / "names.txt")


def test_patience_ends_a_run_that_gets_no_better(colours, tmp_path, capsys):
    frozen = "train.freeze=[stem.*, blocks.*, head.*]"
    run(colours, frozen, "optim.lr=1e-30", "train.epochs=9", "train.patience=2")
    assert len(lines_of(tmp_path / "run")) == 3
    assert "train.patience=2" in capsys.readouterr().out
    last = load_file(tmp_path / "run/checkpoints/last/model.safetensors")
    assert (last["blocks.0.project.bn._mean"] == 0).all()  # frozen statistics as well


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_size=64", "24 images.* 64 .*data.batch_size.*train.min_steps_per_epoch"),
        ("train.accumulate=4", " 32 .*train.accumulate 4"),
        ("model.num_classes=3", "2 .*model.num_classes is 3"),
        ("data.train_root=null", "data.train_root .*data.train_list"),
    ],
)
def test_data_that_does_not_fit_is_refused(colours, override, words):
    with pytest.raises(ConfigError, match=words):
        run(colours, override)


def test_an_unreadable_training_image_stops_or_is_left_out(colours, tmp_path):
    broken = tmp_path / "colours" / "blue" / "00.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(PpclsError, match="00.png"):
        run(colours)
    assert run(colours, "data.on_error=skip", "train.epochs=1", options=["--overwrite"]) == 0
    assert lines_of(tmp_path / "run")[0]["eval_skipped"] == 1


def test_cosine_schedule():
    config = OptimConfig(schedule="cosine", warmup_epochs=2)
    rates = [learning_rate(config, 0.4, step, steps_per_epoch=10, steps=100) for step in range(100)]
    assert rates[0] == pytest.approx(0.4 / 20)
    assert rates[19] == 0.4
    assert rates[20] == pytest.approx(0.4 * 0.5 * (1 + np.cos(np.pi * 0.2)))
    assert rates[50] == pytest.approx(0.2)
    assert 0 < rates[99] < 0.4 * 1e-3
    assert max(rates) == rates[19]


def test_step_schedule():
    config = OptimConfig(schedule="step", decay_epochs=3)
    rates = [learning_rate(config, 1.0, step, steps_per_epoch=4, steps=36) for step in (0, 11, 12, 24)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.01])


@pytest.mark.parametrize(("steps", "halvings"), [(124_008, 10), (1000, 20), (7, 3), (30, 1)])
def test_halving_schedule(steps, halvings):
    """After i parts of N + 1, i being 1 to N, the rate is halved, at the first step that is not before it."""
    config = OptimConfig(schedule="halving", halvings=halvings)
    starts = [math.ceil(Fraction(i * steps, halvings + 1)) for i in range(1, halvings + 1)]
    rates = [learning_rate(config, 3.15, step, 50, steps) for step in range(steps)]
    assert rates == [3.15 / 2 ** bisect_right(starts, step) for step in range(steps)]
    assert rates[0] == 3.15 and rates[-1] == 3.15 / 2**halvings


def test_the_warm_up_begins_from_the_rate_of_256_images():
    """As https://arxiv.org/abs/1706.02677: from 0.1 to 0.1 / 256 times the batch by equal amounts."""
    config = OptimConfig(lr=0.1, schedule="halving", warmup_epochs=2.5, warmup_lr=0.1)
    peak = scaled_lr(config, 8064)
    assert peak == pytest.approx(3.15)
    rates = [learning_rate(config, peak, step, 10, steps=1000) for step in range(26)]
    assert rates[:25] == pytest.approx([0.1 + 3.05 * (step + 1) / 25 for step in range(25)])
    assert rates[24] == rates[25] == peak


def test_warm_up_and_schedule_begin_when_all_is_trained():
    for schedule in ("cosine", "step", "exponential", "halving"):
        config = OptimConfig(schedule=schedule, warmup_epochs=1, decay_epochs=2)
        rates = [learning_rate(config, 0.4, step, 5, steps=45, freeze_epochs=3) for step in range(45)]
        later = [learning_rate(config, 0.4, step, 5, steps=30) for step in range(30)]
        assert rates == [0.4] * 15 + later


def test_few_images_fill_an_epoch_of_their_own_length(colours, tmp_path, capsys):
    options = ["data.batch_size=64", "train.min_steps_per_epoch=2", "train.epochs=1"]
    run(colours, *options)
    out = capsys.readouterr().out
    assert "1 epoch of 2 steps, global batch 64" in out and "5.3 times (train.min_steps_per_epoch)" in out
    assert len(lines_of(tmp_path / "run")) == 1


def test_a_run_of_so_many_images(colours, tmp_path, capsys):
    """24 images, 8 a step: 100 images are 13 steps, in epochs of 5, 5 and 3; the third step ends a pass."""
    options = ["train.epochs=null", "train.images=100", "train.epoch_images=39", "optim.schedule=halving"]
    options += ["optim.halvings=3", "optim.lr=0.64", "train.checkpoint_steps=1", "train.keep_last=99"]
    assert run(colours, *options) == 0
    out = capsys.readouterr().out
    assert "3 epochs of 5 steps, the last of 3, global batch 8" in out
    assert "uses 104 images, each 4.33 times" in out
    lines = lines_of(tmp_path / "run")
    assert [(line["epoch"], line["images"]) for line in lines] == [(1, 40), (2, 80), (3, 104)]
    # the steps of the halvings: 13 / 4, 13 / 2 and 39 / 4, rounded up
    assert [line["lr"] for line in lines] == [0.02 / 2, 0.02 / 4, 0.02 / 8]
    steps = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("state-*"))
    assert steps == [f"state-{step:09d}.safetensors" for step in range(1, 14)]
    best = max(lines, key=lambda line: (line["eval_top1"], -line["eval_loss"]))
    with safe_open(tmp_path / "run/checkpoints/best/model.safetensors", "numpy") as file:
        assert int(file.metadata()["epoch"]) == best["epoch"]


def test_fewer_images_than_a_pass_or_a_batch(colours, tmp_path, capsys):
    run(colours, "train.epochs=null", "train.images=10")
    assert "1 epoch of 3 steps, the last of 2" in capsys.readouterr().out
    (line,) = lines_of(tmp_path / "run")
    assert line["images"] == 16
    run(colours, "train.epochs=null", "train.images=100", "data.batch_size=50", options=["--overwrite"])
    assert "2 epochs of 1 step, global batch 50" in capsys.readouterr().out
    assert [line["images"] for line in lines_of(tmp_path / "run")] == [50, 100]


def test_steps_are_those_of_passes_whatever_the_epochs(colours):
    """Batches of a run in epochs of 5 steps are those of passes of 3, one behind the other."""
    common = load_config(colours, ["augment.mixup=0.2", "data.batch_size=8"])
    pictures = open_split(common.data, "train", num_classes=2, class_names=None)
    spec = common.data.preprocessing.resolve(None)
    passes = [
        batch.images
        for epoch in range(4)
        for batch in train_batches(common, spec, pictures, epoch=epoch, num_workers=1)
    ]
    length = RunLength(11, 5)
    for epoch, steps in enumerate([5, 5, 1]):
        first, end = length.updates(epoch), length.updates(epoch + 1)
        options = {"end": end, "run_end": length.steps, "num_workers": 2}
        found = list(batches_of_steps(common, spec, pictures, first=first, **options))
        assert len(found) == steps == length.steps_of(epoch)
        np.testing.assert_array_equal([b.images for b in found], passes[5 * epoch : 5 * epoch + steps])
        (last,) = batches_of_steps(common, spec, pictures, first=end - 1, **options)
        np.testing.assert_array_equal(last.images, passes[end - 1])


def test_the_learning_rate_is_for_256_images():
    assert scaled_lr(OptimConfig(lr=0.4), 32) == pytest.approx(0.05)


def test_optimizer_steps_follow_the_formula():
    """v = 0.9 v + (g + decay w); w -= lr v; no decay on batch norm."""
    paddle.seed(0)
    model = build_model("EfficientNetB0_small", num_classes=2)
    config = OptimConfig(momentum=0.9, weight_decay=0.1)
    optimizer = build_optimizer(config, model, 0.05)
    keys = {
        "fc.weight": 0.1,
        "fc.bias": 0.1,
        "stem.conv.weight": 0.1,
        "stem.bn.weight": 0.0,
        "stem.bn.bias": 0.0,
    }
    state = model.state_dict()
    expected = {key: state[key].numpy().astype(np.float64) for key in keys}
    velocity = dict.fromkeys(keys, 0.0)
    for step in range(3):
        rate = 0.05 / (step + 1)
        model(paddle.randn([2, 3, 32, 32])).sum().backward()
        for key, decay in keys.items():
            velocity[key] = 0.9 * velocity[key] + state[key].grad.numpy() + decay * expected[key]
            expected[key] = expected[key] - rate * velocity[key]
        optimizer.set_lr(rate)
        optimizer.step()
        optimizer.clear_grad()
    for key, value in expected.items():
        scale = np.abs(value).max() + 1e-3
        np.testing.assert_allclose(state[key].numpy(), value, atol=1e-4 * scale, err_msg=key)


def test_label_smoothing_is_the_mean_over_all_classes():
    logits, labels = paddle.randn([6, 5]), paddle.to_tensor([0, 1, 2, 3, 4, 0])
    log_p = F.log_softmax(logits).numpy()
    true = log_p[np.arange(6), labels.numpy()]
    assert cross_entropy(logits, labels, 0.0).item() == pytest.approx(-true.mean(), rel=1e-5)
    smoothed = -(0.9 * true + 0.1 * log_p.mean(1)).mean()
    assert cross_entropy(logits, labels, 0.1).item() == pytest.approx(smoothed, rel=1e-5)
