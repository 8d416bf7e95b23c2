"""`ppcls benchmark train`: training steps."""

import argparse
from typing import Any, get_args

from ppcls import distributed
from ppcls.cli.benchmark.figures import HEADING, cells, write_figures
from ppcls.cli.common import add_config_options, log, num_workers, read_config
from ppcls.config import Config, KernelsOption
from ppcls.errors import ConfigError
from ppcls.processor import processor


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="training steps: images per second, and the time of each stage",
        description="Images per second of training, the seconds of each stage of a step, and the peak of "
        "resident memory, for each process; python -m paddle.distributed.launch runs several. Images come "
        "from data.train_list or data.train_root; --synthetic reads no files.",
    )
    add_config_options(command)
    command.add_argument(
        "--steps", type=int, default=20, metavar="N", help="measured steps, after two others (default 20)"
    )
    command.add_argument("--synthetic", action="store_true", help="use one random batch, without files")
    command.add_argument(
        "--kernels",
        nargs="+",
        choices=get_args(KernelsOption),
        metavar="KERNELS",
        help=f"compare these of {', '.join(get_args(KernelsOption))} in turns, on one random batch",
    )
    command.add_argument(
        "--beside-torch",
        metavar="PYTHON",
        help="compare with timm's network on torch too, by the Python of another environment",
    )
    command.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default 5)")
    command.set_defaults(run=train)


def train(args: argparse.Namespace) -> int:
    config = read_config(args)

    from ppcls.build import build_fresh
    from ppcls.data.open import open_split, require_split

    data = config.data
    compares = args.kernels is not None or args.beside_torch is not None
    if compares and distributed.world_size() > 1:
        raise ConfigError("--kernels and --beside-torch compare in one process: start without launch.")
    if not args.synthetic and not compares:
        require_split(data, "train")
    network = build_fresh(config, log)  # random weights take the same time
    if compares:
        return side_by_side(args, config, network.preprocessing.crop_size)
    train_set = None
    if not args.synthetic:
        num_classes, names = config.model.num_classes, network.class_names
        train_set = open_split(data, "train", num_classes=num_classes, class_names=names)

    from ppcls.benchmarks.train import STAGES, measure_training
    from ppcls.inference.versions import versions

    own = measure_training(config, network, train_set, num_workers(config), args.steps)
    ranks = distributed.gather(own)
    figures = {
        "model": config.model.name,
        "size": network.preprocessing.crop_size,
        "batch_size": data.batch_size,
        "steps": args.steps,
        "synthetic": args.synthetic,
        "images_per_second": sum(rank["images_per_second"] for rank in ranks),
        "ranks": ranks,
        "processor": processor(),
        "versions": versions(),
    }
    log(
        f"{config.model.name} at {network.preprocessing.crop_size} pixels, batch {data.batch_size} of each "
        f"process, {args.steps} steps, {figures['processor']}"
    )
    log(f"{'':9}{'images':>10}{'median seconds of a step':>32}{'peak':>12}")
    log(f"{'process':9}{'per second':>10}{''.join(f'{part:>10}' for part in STAGES)}{'memory':>12}")
    for number, rank in enumerate(ranks):
        cells = "".join(f"{rank['seconds'][part]:10.3f}" for part in STAGES)
        memory = f"{rank['peak_memory_bytes'] / 2**20:.0f} MiB"
        log(f"{number:<9}{rank['images_per_second']:10.2f}{cells}{memory:>12}")
    log(f"{'all':9}{figures['images_per_second']:10.2f}")
    if distributed.rank() == 0:
        write_figures(args.json, figures)
    return 0


def side_by_side(args: argparse.Namespace, config: Config, size: int) -> int:
    """Compare kernels, and torch, in turns, on images of `size` pixels."""
    from ppcls.benchmarks.side_by_side import measure_side_by_side
    from ppcls.build import build_fresh
    from ppcls.inference.versions import versions

    kernels = args.kernels or [config.kernels]
    rows = measure_side_by_side(
        config,
        lambda: build_fresh(config, lambda line: None),
        kernels,
        args.beside_torch,
        steps=args.steps,
        rounds=args.rounds,
    )
    batch = config.data.batch_size
    print(
        f"{config.model.name} at {size} pixels, batch {batch}, {args.rounds} rounds of {args.steps} steps, "
        f"{processor()}"
    )
    print(f"{'':34}{'images per second':>24}{'ratio to the first':>24}")
    print(f"{'':34}{2 * HEADING}")
    for name, row in rows.items():
        print(f"{name:34}{cells(row['images_per_second'], '8.2f')}{cells(row['ratio'], '8.2f')}")
    figures = {"model": config.model.name, "size": size, "batch_size": batch, "rows": rows}
    figures |= {"steps": args.steps, "rounds": args.rounds}
    write_figures(args.json, figures | {"processor": processor(), "versions": versions()})
    return 0
