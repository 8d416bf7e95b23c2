"""Write embeddings.npz: what the classifiers of published networks see. README.md says how."""

from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet
from make_timm import fill
from seeded import ODD_SIZE, draw_input, name_entry

NETWORKS = {  # this project's name, and timm's
    "EfficientNetB0": "tf_efficientnet_b0",
    "EfficientNetLite0": "tf_efficientnet_lite0",
    "ResNeXt101_32x8d_wsl": "resnext101_32x8d",
}


@torch.no_grad()
def main() -> None:
    embeddings = {}
    odd, nominal = (2, 3, *ODD_SIZE), (1, 3, 224, 224)
    for name, theirs in NETWORKS.items():
        network = timm.create_model(theirs, pretrained=False)
        fill(network, "timm", name)
        features = network.forward_features(torch.from_numpy(draw_input(*odd)))
        embeddings[name_entry(name, odd)] = network.forward_head(features, pre_logits=True).numpy()
    network = EfficientNet.from_name("efficientnet-lite0")
    fill(network, "lukemelas", "EfficientNetLite0")
    features = network.extract_features(torch.from_numpy(draw_input(*nominal)))
    embeddings[name_entry("EfficientNetLite0", nominal)] = features.mean(dim=(2, 3)).numpy()
    for name, rows in embeddings.items():
        print(name, rows.shape, f"norm {np.linalg.norm(rows):.2f}")
    np.savez_compressed(Path(__file__).with_name("embeddings.npz"), **embeddings)


if __name__ == "__main__":
    main()
