"""Write plain.*.pth and nested.*.pth, each as a zip and as a stream, from expected.npz.

pip install torch numpy; python tests/golden/readers/make_torch.py
"""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def main() -> None:
    arrays = {key: torch.from_numpy(array.copy()) for key, array in np.load(HERE / "expected.npz").items()}
    base = arrays["base"]
    plain = OrderedDict(
        arrays, transposed=base.t(), part=base[1:3, 2:5], bfloat16=arrays["bfloat16"].bfloat16()
    )
    plain["bias"] = torch.nn.Parameter(arrays["bias"])

    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, (1, 2)), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    model(torch.ones(2, 2, 1, 2)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight.copy_(arrays["weight"])
        model[0].bias.copy_(arrays["bias"])
    nested = {
        "epoch": 3,
        "accuracy": 0.86,
        "arch": "resnext",
        "model": torch.nn.DataParallel(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(lr=0.1, sizes=[224, 320]),
        "shape": torch.Size([3, 2]),
    }
    for name, value in (("plain", plain), ("nested", nested)):
        torch.save(value, HERE / f"{name}.zip.pth")
        torch.save(value, HERE / f"{name}.stream.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
