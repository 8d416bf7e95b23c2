"""Write training.npz and training_schedules.json: updates and rates of torch and timm. README.md says how."""

import json
from pathlib import Path

import numpy as np
import torch
from timm.optim import RMSpropTF
from timm.scheduler import CosineLRScheduler, StepLRScheduler

HERE = Path(__file__).parent
STEPS = 20
LR = 0.05
FACTOR = 10.0  # of fc's learning rate
DECAY = 0.02  # not on batch norm
SHAPES = {
    "conv.weight": (4, 3, 1, 1),
    "conv.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "fc.weight": (4, 2),
    "fc.bias": (2,),
}
OPTIMIZERS = {
    "rmsprop": lambda groups: RMSpropTF(groups, lr=LR, alpha=0.9, eps=1e-3, momentum=0.9),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=LR, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=LR, betas=(0.8, 0.99), eps=1e-8),
}
CLIP_LIMITS = (0.5, 1e3)
STEPS_PER_EPOCH, EPOCHS, WARMUP = 10, 20, 5


def updates(name: str, start: dict, gradients: dict) -> dict[str, np.ndarray]:
    """Each parameter after each step; the rate falls from step to step."""
    parameters = {key: torch.nn.Parameter(torch.from_numpy(value.copy())) for key, value in start.items()}
    groups = [
        {
            "params": [parameter],
            "weight_decay": 0.0 if key.startswith("norm") else DECAY,
            "lr": LR * (FACTOR if key.startswith("fc") else 1.0),
        }
        for key, parameter in parameters.items()
    ]
    optimizer = OPTIMIZERS[name](groups)
    peaks = [group["lr"] for group in optimizer.param_groups]
    after: dict[str, list] = {key: [] for key in parameters}
    for step in range(STEPS):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak / (1 + step)
        for key, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradients[key][step].copy())
        optimizer.step()
        for key, parameter in parameters.items():
            after[key].append(parameter.detach().numpy().copy())
    return {f"{name}/{key}": np.stack(values) for key, values in after.items()}


def clipped(limit: float, gradients: dict) -> dict[str, np.ndarray]:
    parameters = {key: torch.nn.Parameter(torch.zeros(shape)) for key, shape in SHAPES.items()}
    for key, parameter in parameters.items():
        parameter.grad = torch.from_numpy(gradients[key][0].copy())
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), limit)
    arrays = {f"clip_{limit:g}/{key}": parameter.grad.numpy() for key, parameter in parameters.items()}
    return arrays | {f"clip_{limit:g}/norm": norm.numpy()}


def rates(scheduler: type, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = scheduler(
        optimizer,
        warmup_t=WARMUP * STEPS_PER_EPOCH,
        warmup_lr_init=0.0,
        warmup_prefix=False,  # the decay counts through the warm-up
        t_in_epochs=False,
        **options,
    )
    found = []
    for step in range(EPOCHS * STEPS_PER_EPOCH):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def main() -> None:
    random = np.random.RandomState(0)
    start = {key: random.normal(0, 1, shape).astype(np.float32) for key, shape in SHAPES.items()}
    gradients = {
        key: random.normal(0, 1, (STEPS, *shape)).astype(np.float32) for key, shape in SHAPES.items()
    }
    arrays = {f"start/{key}": value for key, value in start.items()}
    arrays |= {f"gradients/{key}": value for key, value in gradients.items()}
    for name in OPTIMIZERS:
        arrays |= updates(name, start, gradients)
    for limit in CLIP_LIMITS:
        arrays |= clipped(limit, gradients)
    np.savez_compressed(HERE / "training.npz", **arrays)

    total = EPOCHS * STEPS_PER_EPOCH
    schedules = {
        "exponential": rates(StepLRScheduler, decay_t=2.4 * STEPS_PER_EPOCH, decay_rate=0.97),
        "step": rates(StepLRScheduler, decay_t=6.0 * STEPS_PER_EPOCH, decay_rate=0.1),
        "cosine": rates(CosineLRScheduler, t_initial=total, lr_min=0.0),
    }
    (HERE / "training_schedules.json").write_text(json.dumps(schedules) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
