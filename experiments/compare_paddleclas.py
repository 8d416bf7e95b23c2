"""Training steps of this project's EfficientNetB0 and of PaddleClas's network, taking turns in one process.

python experiments/compare_paddleclas.py [--rounds N] [--steps N] [--batch-size N]

Both go through this project's trainer with the options of configs/EfficientNetB0.yaml, but for the moving
average, on the same drawn batch. Processor time, of all threads, says more than seconds do where other work
shares the machine; with OMP_NUM_THREADS=1 threads do not wait for each other. Needs paddleclas 2.6.0 beside
ppcls.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppcls import build_model, distributed  # noqa: E402
from ppcls.config import load_config  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each network in a round")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    options = ["device=cpu", f"data.batch_size={args.batch_size}", "train.ema_decay=null"]
    config = load_config(ROOT / "configs/EfficientNetB0.yaml", options)
    distributed.start("cpu")

    import paddleclas

    from ppcls.benchmarks.train import synthetic_batches
    from ppcls.training.loop import Trainer

    networks = {
        "ppcls": build_model("EfficientNetB0"),
        "paddleclas": paddleclas.EfficientNetB0(),
    }
    spec = config.data.preprocessing(None)
    batches = synthetic_batches(config, spec)
    trainers = {
        name: Trainer(config, network, spec, range(10**6), range(1), 1) for name, network in networks.items()
    }
    clocks = {"seconds": time.perf_counter, "processor seconds": time.process_time}
    spent: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in trainers} for clock in clocks}
    for trainer in trainers.values():
        trainer.network.train()
        trainer.train_step(batches, 1e-4, 0)
    for number in range(args.rounds):
        for name, trainer in trainers.items():
            starts = {clock: read() for clock, read in clocks.items()}
            for step in range(args.steps):
                trainer.train_step(batches, 1e-4, number * args.steps + step + 1)
            for clock, read in clocks.items():
                spent[clock][name].append((read() - starts[clock]) / args.steps)
        print(f"round {number + 1} of {args.rounds}", flush=True)
    for clock, networks in spent.items():
        ratios = [b / a for a, b in zip(networks["ppcls"], networks["paddleclas"], strict=True)]
        means = ", ".join(f"{name} {median(values):.2f}" for name, values in networks.items())
        print(
            f"{clock} a step: {means}; ppcls {median(ratios):.2f} times as fast, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
