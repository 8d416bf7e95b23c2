"""Write explain.npz: Grad-CAM by torch's own derivatives on timm's networks. README.md says how."""

from pathlib import Path

import numpy as np
import timm
import torch
from make_timm import fill
from seeded import ODD_SIZE, draw_input, name_entry

# this project's name, timm's, and timm's layer in front of the average over the area
NETWORKS = {
    "EfficientNetB0": ("tf_efficientnet_b0", lambda network: network.bn2),
    "EfficientNetLite0": ("tf_efficientnet_lite0", lambda network: network.bn2),
    "ResNeXt101_32x8d_wsl": ("resnext101_32x8d", lambda network: network.layer4),
}


def grad_cam(network: torch.nn.Module, layer: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """float32 [N, h, w]: relu of the channels' sum, weighted with the mean derivative of the top-1 logit."""
    kept = {}
    layer.register_forward_hook(lambda _, __, output: kept.update(features=output))
    layer.register_full_backward_hook(lambda _, __, outputs: kept.update(gradients=outputs[0]))
    logits = network(torch.from_numpy(images))
    logits.max(dim=1).values.sum().backward()
    weights = kept["gradients"].mean(dim=(2, 3), keepdim=True)
    return torch.relu((weights * kept["features"]).sum(dim=1)).detach().numpy()


def main() -> None:
    heat = {}
    shape = (2, 3, *ODD_SIZE)
    for name, (theirs, find_layer) in NETWORKS.items():
        network = timm.create_model(theirs, pretrained=False)
        fill(network, "timm", name)
        heat[name_entry(name, shape)] = grad_cam(network, find_layer(network), draw_input(*shape))
        print(name, heat[name_entry(name, shape)].shape, heat[name_entry(name, shape)].max())
    np.savez_compressed(Path(__file__).with_name("explain.npz"), **heat)


if __name__ == "__main__":
    main()
