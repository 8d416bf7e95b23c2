"""Write torch's files into a folder, and add to formats.npz and formats_keys.json. README.md says how.

python tests/golden/make_formats_torch.py DIR [MODEL ...]
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import efficientnet_lite_pytorch
import efficientnet_pytorch
import timm
import torch
import torchvision
from make_formats_paddle import choose_shape, record
from make_timm import fill
from seeded import draw_input
from timm.models import save_for_hf
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from ppcls.architectures import MODELS, ResNeXtVariant

Build = Callable[[], nn.Module]
TIMM_RESNEXTS = (8, 16, 32)  # it has no 48
# Its own EfficientNets, which pad as torch does, apart from those that it took from TensorFlow
TIMM_OWN = {"b0": "ra_in1k", "b1": "ft_in1k", "b2": "ra_in1k", "b3": "ra2_in1k", "b4": "ra2_in1k"}


def list_sources(name: str) -> Iterable[tuple[str, str, Build]]:
    """Each file that holds a network's weights: where to put it, whose keys it has, the implementation."""
    if isinstance(MODELS[name], ResNeXtVariant):
        width = int(name.split("32x")[1].split("d")[0])

        def build() -> nn.Module:
            return ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=width)

        if name.startswith("Fix_"):
            yield f"fixres/{name}.pth", "torchvision", build
            return
        yield f"wsl/{name}.pth", "torchvision", build
        if width == 8:
            yield "torchvision/resnext101_32x8d.pth", "torchvision", torchvision.models.resnext101_32x8d
        if width in TIMM_RESNEXTS:
            yield _timm(f"resnext101_32x{width}d.fb_wsl_ig1b_ft_in1k")
        return
    net = name.removeprefix("EfficientNet").lower()
    if net.startswith("lite"):
        package = efficientnet_lite_pytorch.EfficientNet
        yield (
            f"lukemelas/efficientnet-{net}.pth",
            "lukemelas",
            lambda: package.from_name(f"efficientnet-{net}"),
        )
        yield _timm(f"tf_efficientnet_{net}.in1k")
        if net == "lite0":
            yield _timm("efficientnet_lite0.ra_in1k")
        return
    yield (
        f"lukemelas/efficientnet-{net}.pth",
        "lukemelas",
        lambda: efficientnet_pytorch.EfficientNet.from_name(f"efficientnet-{net}"),
    )
    yield _timm(f"tf_efficientnet_{net}.aa_in1k")
    if net in TIMM_OWN:
        yield _timm(f"efficientnet_{net}.{TIMM_OWN[net]}")
    yield (
        f"torchvision/efficientnet_{net}.pth",
        "torchvision",
        getattr(torchvision.models, f"efficientnet_{net}"),
    )


def _timm(tagged: str) -> tuple[str, str, Build]:
    name = tagged.split(".")[0]
    return f"timm/{name}/model.safetensors", "timm", lambda: timm.create_model(tagged, pretrained=False)


def save(network: nn.Module, file: Path) -> None:
    """As the publisher did. The files of 2019 are older than torch's zip format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    if file.suffix == ".safetensors":
        save_for_hf(network, file.parent, safe_serialization=True)
    elif file.parent.name == "torchvision":
        torch.save(state, file)
    elif file.parent.name == "wsl":
        # Their published sizes leave no room for the counters: all four are this one's and 1044 bytes,
        # two for each tensor, whose number in the file has more digits
        weights = OrderedDict((key, t) for key, t in state.items() if not key.endswith("num_batches_tracked"))
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    elif file.parent.name == "fixres":
        checkpoint = {
            "model": nn.DataParallel(network).state_dict(),
            "epoch": 1,
            "optimizer": torch.optim.SGD(network.parameters(), lr=1e-3).state_dict(),
        }
        torch.save(checkpoint, file, _use_new_zipfile_serialization=False)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=False)


@torch.no_grad()
def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or MODELS
    for name in names:
        if name == "EfficientNetB0_small":  # PaddleClas alone has it
            continue
        for file, source, build in list_sources(name):
            network = build()
            fill(network, source, name)
            save(network, folder / file)
            logits = network(torch.from_numpy(draw_input(*choose_shape(name)))).numpy()
            shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
            record(file, name, shapes, logits)
            del network


if __name__ == "__main__":
    main()
