"""The recipes in configs/: their published numbers, and that FixRes's moves what it should and no more."""

import re
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppcls import MODELS, build_model
from ppcls.architectures.resnext101_wsl import ResNeXt101
from ppcls.architectures.variants import EfficientNetVariant, ResNeXtVariant
from ppcls.config_files import load_config
from ppcls.data.loader import Batch
from ppcls.training.batches import count_steps
from ppcls.training.schedule import learning_rate, scaled_lr
from ppcls.training.state import TrainState
from ppcls.training.step import train_step

CONFIGS = Path(__file__).parent.parent / "configs"
EFFICIENTNETS = [name for name, variant in MODELS.items() if isinstance(variant, EfficientNetVariant)]
WSL = [name for name in MODELS if name.startswith("ResNeXt101")]
FIX = "Fix_ResNeXt101_32x48d_wsl"
PUBLISHED = {  # tensorflow/tpu, models/official/efficientnet: main.py, utils.py, preprocessing.py
    "optim": {
        "name": "rmsprop",
        "lr": 0.016,
        "lr_factors": {},
        "momentum": 0.9,
        "rho": 0.9,
        "epsilon": 1e-3,
        "weight_decay": 1e-5,
        "schedule": "exponential",
        "decay_epochs": 2.4,
        "decay_factor": 0.97,
        "warmup_epochs": 5.0,
        "clip_norm": None,
    },
    "train": {"epochs": 350, "label_smoothing": 0.1, "ema_decay": 0.9999, "freeze": ()},
    "augment": {
        "center_crop": False,
        "crop_area": (0.08, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "auto_augment": "v0",
        "rand_augment": None,
        "color_jitter": (0.0, 0.0, 0.0),
        "random_erasing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
    },
}
SIZES_AND_DROPOUT = {  # efficientnet_builder.py; drop connect is 0.2 and batch norm keeps 0.99 in all
    "EfficientNetB0": (224, 0.2),
    "EfficientNetB1": (240, 0.2),
    "EfficientNetB2": (260, 0.3),
    "EfficientNetB3": (300, 0.3),
    "EfficientNetB4": (380, 0.4),
    "EfficientNetB5": (456, 0.4),
    "EfficientNetB6": (528, 0.5),
    "EfficientNetB7": (600, 0.5),
    "EfficientNetB0_small": (224, 0.2),
    "EfficientNetLite0": (224, 0.2),  # efficientnet_lite_builder.py
    "EfficientNetLite1": (240, 0.2),
    "EfficientNetLite2": (260, 0.3),
    "EfficientNetLite3": (280, 0.3),
    "EfficientNetLite4": (300, 0.3),
}


def recipe(name):
    return load_config(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_the_efficientnets_have_the_published_numbers(name):
    config = recipe(name)
    for section, options in PUBLISHED.items():
        found = {option: getattr(getattr(config, section), option) for option in options}
        assert found == options
    preprocessing = config.data.preprocessing
    variant = MODELS[name]
    assert config.model.network_options() == {}  # so the variant's own hold
    assert (preprocessing.crop_size, variant.dropout) == SIZES_AND_DROPOUT[name]
    assert (variant.drop_connect, variant.bn_momentum, variant.bn_epsilon) == (0.2, 0.99, 1e-3)


def test_the_efficientnets_rate_decays_while_it_warms_up():
    optim = recipe("EfficientNetB0").optim
    peak = 0.016 * 2048 / 256
    rates = [learning_rate(optim, peak, 100 * epoch, 100, 35_000) for epoch in (5, 7.2, 24, 349)]
    assert rates == pytest.approx([peak * 0.97**stairs for stairs in (2, 3, 10, 145)])


@pytest.mark.parametrize(
    ("pictures", "steps", "uses"), [(24, 5, 160 / 24), (240, 7, 224 / 240), (40_000, 1250, 1)]
)
def test_one_recipe_fits_few_pictures_and_many(pictures, steps, uses):
    """Four fifths of 3 x 10, 3 x 100 and 50,000 pictures; docs/recipes.md has this table."""
    config = recipe("finetune")
    assert count_steps(config, pictures) == steps and steps * config.data.batch_size / pictures == uses
    frozen, epochs = config.train.freeze_epochs * steps, config.train.epochs
    line = f"| {pictures:,} | {steps:,} | {uses:.1f} | {frozen:,} | {steps * epochs - frozen:,} |"
    assert line in (CONFIGS.parent / "docs/recipes.md").read_text()
    with paddle.LazyGuard():
        state = TrainState(config, build_model("EfficientNetB0_small", num_classes=2), steps)
    rates = np.array([state.learning_rate(step) for step in range(epochs * steps)])
    assert (rates[:frozen] == 0.005).all()  # and the classifier has 0.02
    assert rates[frozen] == pytest.approx(0.005 / steps) and rates[-1] < 1e-4
    assert rates[frozen:].argmax() == steps - 1  # the warm-up's last


@pytest.mark.parametrize("name", WSL)
def test_the_wsl_networks_are_tuned_not_trained(name):
    config = recipe(name)
    optim = config.optim
    assert (optim.name, optim.nesterov, optim.schedule, optim.weight_decay) == ("sgd", True, "cosine", 1e-4)
    assert 1e-3 <= optim.lr <= 4e-3 and config.train.epochs <= 10
    assert config.train.freeze == () and config.train.ema_decay is None


PRETRAINING = "ResNeXt101_32x8d_wsl_pretraining"


def test_the_pretraining_has_the_papers_numbers():
    """A batch of 8,064 on 336 processes, the rate from 0.1 to 0.1 / 256 of it, then 10 to 20 halvings."""
    config = recipe(PRETRAINING)
    optim, train, processes = config.optim, config.train, 336
    batch = config.data.batch_size * processes
    peak = scaled_lr(optim, batch)
    assert (batch, optim.warmup_lr, train.images) == (8064, 0.1, 940_000_000)
    assert peak == pytest.approx(0.1 / 256 * 8064)
    steps, epoch = -(-train.images // batch), -(-train.epoch_images // batch)
    rates = [learning_rate(optim, peak, step, epoch, steps) for step in range(0, steps, 100)]
    assert rates[0] == pytest.approx(0.1, rel=0.03) and max(rates) == peak
    assert rates[-1] == peak / 2**optim.halvings and 10 <= optim.halvings <= 20
    assert len(set(rates[epoch // 500 + 1 :])) == optim.halvings + 1
    assert (config.data.sampling, config.data.on_error, train.sync_bn) == ("sqrt", "skip", False)
    assert train.start_from is None and config.model.weights is None


def test_each_number_of_the_pretraining_says_where_it_is_from():
    lines = (CONFIGS / f"{PRETRAINING}.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r" +\w+: ", line)]
    assert len(values) > 30
    assert [line for line in values if not re.search(r"  # \[(paper|memory|ours)\]", line)] == []


def test_fixres_has_the_authors_numbers():
    config = recipe(FIX)
    optim, train = config.optim, config.train
    assert optim.lr == 8 * 1e-3 * 256 / 512  # main_finetune's --learning-rate 1e-3, as its trainer scales it
    assert (optim.name, optim.momentum, optim.nesterov, optim.weight_decay) == ("sgd", 0.9, False, 1e-4)
    assert (optim.schedule, optim.decay_epochs, optim.warmup_epochs) == ("step", 30, 0)
    assert (train.epochs, train.label_smoothing) == (1, 0)
    assert config.augment.center_crop and config.augment.flip == 0
    assert (config.data.preprocessing.crop_size, config.data.batch_size) == (320, 8)


def test_fixres_moves_the_classifier_and_the_last_statistics_alone():
    """Its own patterns on a network of full depth and a single channel a group."""
    config = load_config(CONFIGS / f"{FIX}.yaml", ["model.num_classes=5", "data.batch_size=4"])
    paddle.seed(0)
    model = ResNeXt101(ResNeXtVariant(width_per_group=1), 5)
    state = TrainState(config, model, steps_per_epoch=2)
    state.train_mode()
    start = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}
    kept = []
    for block in state.local.blocks:
        block.register_forward_post_hook(lambda _block, _inputs, out: kept.append(not out.stop_gradient))
    random = np.random.RandomState(0)
    for step in range(3):
        images = random.normal(size=(4, 3, 64, 64)).astype(np.float32)
        batch = Batch(images, np.arange(4), random.randint(0, 5, 4), [])
        train_step(state, iter([batch]), 0.1, step)
    changed = {key for key, tensor in model.state_dict().items() if (tensor.numpy() != start[key]).any()}
    last = "blocks.32.expand.bn"
    assert changed == {"fc.weight", "fc.bias", f"{last}._mean", f"{last}._variance"}
    assert len(kept) == 3 * 33 and not any(kept)  # no block has anything to go back through
