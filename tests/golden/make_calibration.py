"""Write calibration.json: what torch-uncertainty says of drawn logits, before and after its own temperature.

README.md says how. The tests draw the same logits.
"""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CLASSES, SIZES = 9, {"known": 500, "others": 300}


def draw_known() -> tuple[np.ndarray, np.ndarray]:
    """float32 [500, 9] and int64 [500]: right about four of five, and too sure of it."""
    random = np.random.RandomState(0)
    labels = random.randint(0, CLASSES, SIZES["known"]).astype(np.int64)
    logits = random.normal(size=(len(labels), CLASSES))
    logits[np.arange(len(labels)), labels] += random.uniform(0.2, 5, len(labels))
    return (2.3 * logits).astype(np.float32), labels


def draw_others() -> np.ndarray:
    """float32 [300, 9]: logits of images of none of the classes."""
    return (2.3 * 1.3 * np.random.RandomState(1).normal(size=(SIZES["others"], CLASSES))).astype(np.float32)


def main() -> None:
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from torch_uncertainty.metrics.classification import (
        AURC,
        FPR95,
        BrierScore,
        CalibrationError,
        CategoricalNLL,
    )
    from torch_uncertainty.post_processing import TemperatureScaler
    from torchmetrics.classification import BinaryAUROC

    known, labels = (torch.from_numpy(array) for array in draw_known())
    known = known.double()
    scaler = TemperatureScaler(init_temperature=1.0, max_iter=1000)
    scaler.to(torch.float64)
    scaler.fit(DataLoader(TensorDataset(known, labels), batch_size=len(labels)), progress=False)
    temperature = scaler.temperature[0].item()

    def judge(logits: torch.Tensor) -> dict[str, float]:
        metrics = {
            "nll": CategoricalNLL(),
            "ece": CalibrationError(task="multiclass", num_bins=15, norm="l1", num_classes=CLASSES),
            "brier": BrierScore(num_classes=CLASSES),
            "aurc": AURC(),
        }
        values = {}
        for name, metric in metrics.items():
            metric = metric.set_dtype(torch.float64)
            metric.update(logits.softmax(-1), labels)
            values[name] = metric.compute().item()
        return values

    golden: dict = {"temperature": temperature}
    golden |= {"before": judge(known), "after": judge(known / temperature)}
    others = torch.from_numpy(draw_others()).double()
    is_known = torch.cat([torch.ones(len(known)), torch.zeros(len(others))]).long()
    scores = {
        "maximum softmax": lambda z: z.softmax(-1).max(-1).values,
        "maximum logit": lambda z: z.max(-1).values,
        "energy": lambda z: z.logsumexp(-1),
    }
    for name, score in scores.items():
        values = score(torch.cat([known, others]))
        apart, passed = BinaryAUROC().set_dtype(torch.float64), FPR95(pos_label=1)
        ranks = values.argsort().argsort() / len(values)  # torchmetrics squashes values outside 0 to 1
        apart.update(ranks, is_known)
        passed.update(values, is_known)
        golden[name] = {"auroc": apart.compute().item(), "passed": passed.compute().item()}
    (HERE / "calibration.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(json.dumps(golden, indent=1))


if __name__ == "__main__":
    main()
