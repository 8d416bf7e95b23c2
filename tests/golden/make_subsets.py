"""Write subsets.json: what timm says of drawn predictions, by ReaL labels and within subsets of the classes.

README.md says how. The tests draw the same predictions.
"""

import json
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
COUNT = 400
SETS = {"a": 1, "r": 2}


def draw_logits(labels: np.ndarray, seed: int) -> np.ndarray:
    """float32 [N, 1000], in each row a few large ones; the true class is often among them."""
    random = np.random.RandomState(seed)
    logits = (0.1 / (random.uniform(0, 1, (len(labels), 1000)) + 0.01)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += random.uniform(0, 14, len(labels)).astype(np.float32)
    return logits


def draw_places(count: int, seed: int) -> np.ndarray:
    """int64 [count], from 0 to 199: labels within a subset."""
    return np.random.RandomState(100 + seed).randint(0, 200, count).astype(np.int64)


def main() -> None:
    import torch
    from timm.data import RealLabelsImagenet
    from timm.utils import accuracy

    info = files("timm.data") / "_info"
    real = json.loads((info / "imagenet_real_labels.json").read_text())[:COUNT]
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, COUNT + 1)]
    first = np.array([row[0] if row else 0 for row in real])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(real, file)
        file.flush()
        judge = RealLabelsImagenet(names, real_json=file.name)
    judge.add_result(torch.from_numpy(draw_logits(first, seed=0)))
    found = judge.get_accuracy()
    golden = {"real": {"labels": real, "top1": found[1], "top5": found[5]}}
    for name, seed in SETS.items():
        indices = [int(line) for line in (info / f"imagenet_{name}_indices.txt").read_text().split()]
        places = draw_places(COUNT, seed)
        logits = torch.from_numpy(draw_logits(np.array(indices)[places], seed))[:, indices]
        target = torch.from_numpy(places)
        top1, top5 = accuracy(logits, target, topk=(1, 5))
        loss = torch.nn.functional.cross_entropy(logits.double(), target)
        golden[f"imagenet-{name}"] = {
            "synsets": (info / f"imagenet_{name}_synsets.txt").read_text().split(),
            "top1": top1.item(),
            "top5": top5.item(),
            "loss": loss.item(),
        }
    (HERE / "subsets.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    for name, entry in golden.items():
        print(name, entry["top1"], entry["top5"])


if __name__ == "__main__":
    main()
