"""Write timm.npz and efficientnet_lite_pytorch.npz: what these packages compute. README.md says how."""

from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet
from seeded import ODD_SIZE, draw, draw_input, list_keys, name_entry

from ppcls.architectures import MODELS, EfficientNetVariant
from ppcls.weights.keymaps import TRANSPOSED, key_map

HERE = Path(__file__).parent


def fill(network: torch.nn.Module, source: str, name: str) -> None:
    state = network.state_dict()
    arrays = {}
    for ours, theirs in key_map(source, name, list_keys(name)).items():
        shape = tuple(state[theirs].shape)
        arrays[theirs] = draw(name, ours, shape[::-1]).T if ours in TRANSPOSED else draw(name, ours, shape)
    counters = {key: value for key, value in state.items() if key.endswith(".num_batches_tracked")}
    network.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()} | counters)
    network.eval()


def nominal(name: str) -> tuple[int, ...]:
    return (1, 3, MODELS[name].image_size, MODELS[name].image_size)


@torch.no_grad()
def compute(network: torch.nn.Module, name: str, shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    logits = {
        name_entry(name, shape): network(torch.from_numpy(draw_input(*shape))).numpy() for shape in shapes
    }
    for entry, values in logits.items():
        print(entry, f"logits of standard deviation {values.std():.2f}")
    return logits


def main() -> None:
    odd = (2, 3, *ODD_SIZE)
    logits = {}
    for name, variant in MODELS.items():
        # timm has no B0_small; of it and of the ResNeXts PaddleClas is right at every size
        if not isinstance(variant, EfficientNetVariant) or name == "EfficientNetB0_small":
            continue
        variant_name = name.removeprefix("EfficientNet").lower()
        network = timm.create_model(f"tf_efficientnet_{variant_name}", pretrained=False)
        fill(network, "timm", name)
        logits |= compute(network, name, [nominal(name), odd] if name == "EfficientNetLite0" else [odd])
    np.savez_compressed(HERE / "timm.npz", **logits)

    logits = {}
    for number in range(5):
        name = f"EfficientNetLite{number}"
        network = EfficientNet.from_name(f"efficientnet-lite{number}")
        fill(network, "lukemelas", name)
        # this package pads for the nominal size whatever the image's
        logits |= compute(network, name, [nominal(name)])
    np.savez_compressed(HERE / "efficientnet_lite_pytorch.npz", **logits)


if __name__ == "__main__":
    main()
