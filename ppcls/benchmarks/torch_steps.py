"""Training steps of a timm network on torch, for `tools/benchmark.py train --beside-torch PYTHON`.

PYTHON torch_steps.py NAME SIZE BATCH CLASSES, in an environment of its own, which needs torch and timm, but
not ppcls. Prints their versions. Then reads numbers, one a line; makes so many steps on a drawn batch, in
channels_last, with SGD; and prints the seconds.
"""

import os
import sys
import time


def main(name: str, size: int, batch: int, classes: int) -> None:
    import timm
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    options = {"drop_path_rate": 0.2} if "efficientnet" in name else {}
    model = timm.create_model(name, num_classes=classes, **options).train()
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)
    print(f"timm {timm.__version__} on torch {torch.__version__}", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
