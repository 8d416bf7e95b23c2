"""Compare training steps of this project's EfficientNetB0 and of PaddleClas's, in turns in one process.

python experiments/compare_paddleclas.py [--rounds N] [--steps N] [--batch-size N]

Both networks make this project's training steps with the options of configs/EfficientNetB0.yaml, without the
moving average, on the same drawn batch. Processor time is that of all threads. It is more reliable than
seconds if other programs share the machine. With OMP_NUM_THREADS=1 threads do not wait for each other. Needs
paddleclas 2.6.0 in addition to ppcls.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppcls import build_model, distributed  # noqa: E402
from ppcls.config_files import load_config  # noqa: E402


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

    from ppcls.benchmarks.train import STEPS_PER_EPOCH, synthetic_batches
    from ppcls.training.state import TrainState
    from ppcls.training.step import train_step

    networks = {
        "ppcls": build_model("EfficientNetB0"),
        "paddleclas": paddleclas.EfficientNetB0(),
    }
    batches = synthetic_batches(config, config.data.preprocessing.resolve(None))
    states = {name: TrainState(config, network, STEPS_PER_EPOCH) for name, network in networks.items()}
    clocks = {"seconds": time.perf_counter, "processor seconds": time.process_time}
    spent: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in states} for clock in clocks}
    for state in states.values():
        state.train_mode()
        train_step(state, batches, 1e-4, 0)
    for number in range(args.rounds):
        for name, state in states.items():
            starts = {clock: read() for clock, read in clocks.items()}
            for step in range(args.steps):
                train_step(state, batches, 1e-4, number * args.steps + step + 1)
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
