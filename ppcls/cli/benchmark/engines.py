"""`ppcls benchmark engines` and `end2end`: an image on each engine, and files to classes."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls.cli.benchmark.figures import HEADING, cells, write_figures
from ppcls.cli.common import add_config_options, add_precision_option, log, read_model, require_engine
from ppcls.config import Config
from ppcls.errors import counted
from ppcls.processor import processor

if TYPE_CHECKING:
    from ppcls.build import Network


def add_commands(commands: Any) -> None:
    add_engines_command(commands)
    add_end2end_command(commands)


def add_engines_command(commands: Any) -> None:
    command = commands.add_parser(
        "engines",
        help="an image on each engine, compared with the peak speed of the machine",
        description="Milliseconds per batch on each engine: blocks of at least half a second take turns, "
        "with a pause between them. Published weights are not downloaded: random ones take the same time. Of "
        "an exported model its own files are measured, int8 forms beside float ones.",
    )
    add_config_options(command, takes_exports=True)
    add_precision_option(command)
    command.add_argument("--engines", nargs="+", metavar="ENGINE", help="default: all that are installed")
    command.add_argument(
        "--beside",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders with Paddle programs of other projects, which are measured too",
    )
    command.add_argument("--no-eager", action="store_true", help="leave the eager network out")
    command.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images of a batch (default 1)"
    )
    command.add_argument("--rounds", type=int, default=7, metavar="N", help="measurements (default 7)")
    command.set_defaults(run=engines)


def add_end2end_command(commands: Any) -> None:
    command = commands.add_parser(
        "end2end",
        help="from image files to classes, compared with the engine alone",
        description="Images per second from files on disk to classes, with the same engine on batches in "
        "memory, and with the eager network. They take turns.",
    )
    add_config_options(command, takes_exports=True)
    command.add_argument("-i", "--input", required=True, help="a folder or a glob pattern of images")
    command.add_argument("--engine", default="auto", help="default: the fastest for one image")
    add_precision_option(command)
    command.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="read the files N times (default 1)"
    )
    command.add_argument("--no-eager", action="store_true", help="leave the eager network out")
    command.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements (default 3)")
    command.set_defaults(run=end2end)


def engines(args: argparse.Namespace) -> int:
    for name in args.engines or ():
        require_engine(name)
    from ppcls.benchmarks.engines import measure_engines
    from ppcls.inference.load import open_export
    from ppcls.inference.versions import versions

    config, folder, network = _export(args)
    figures = measure_engines(
        folder,
        network and network.model,
        open_export(folder, "auto", precision=args.precision, config=config, log=log),
        requested=args.engines,
        beside=args.beside,
        with_eager=not args.no_eager,
        batch_size=args.batch_size,
        rounds=args.rounds,
    )
    figures |= {"processor": processor(), "versions": versions()}
    print(
        f"{figures['model']} at {figures['size']} pixels, batch {args.batch_size}, "
        f"{counted(figures['threads'], 'thread')} of {figures['processor']}"
    )
    above, below, width = "", "", 0  # the column of shares, which an export has not
    if "ceiling_gflops" in figures:
        above, below, width = "share of", "ceiling", 10
        print(
            f"peak {figures['ceiling_gflops']:.0f} GFLOP/s, {figures['multiply_adds'] / 1e9:.2f} G "
            "multiply-adds per image"
        )
    print(f"{'':34}{'milliseconds per batch':>24}{above:>{width}}{'difference':>16}")
    compared = f"to {figures['reference']}" if figures["reference"] else ""
    print(f"{'':34}{HEADING}{below:>{width}}{compared:>16}")
    for name, row in figures["rows"].items():
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        share = "" if row["share_of_ceiling"] is None else f"{row['share_of_ceiling']:.2f}"
        print(f"{name:34}{cells(row['milliseconds'], '8.2f')}{share:>{width}}{difference:>16}")
    write_figures(args.json, figures)
    return 0


def end2end(args: argparse.Namespace) -> int:
    require_engine(args.engine, "auto", "measure")
    from ppcls.benchmarks.end2end import measure_end2end
    from ppcls.data.folders import find_images
    from ppcls.inference.load import open_export, over_network
    from ppcls.inference.versions import versions

    files = find_images(args.input) * args.repeat
    config, folder, network = _export(args)
    predictor = open_export(folder, args.engine, precision=args.precision, config=config, bulk=True, log=log)
    eager = None if args.no_eager or network is None else over_network(config, network)
    figures = measure_end2end(predictor, eager, files, rounds=args.rounds, on_error=config.data.on_error)
    figures |= {"processor": processor(), "versions": versions()}
    print(
        f"{config.model.name} on {counted(len(files), 'file')}, {counted(figures['streams'], 'stream')} of "
        f"{figures['engine']}, "
        f"batch {figures['batch_size']}, {figures['processor']}"
    )
    print(f"{'images per second':28}{HEADING}")
    for name, row in figures["images_per_second"].items():
        print(f"{name:28}{cells(row, '8.1f')}")
    print(f"End to end reaches {figures['share_of_engine']:.2f} of the engine alone", end="")
    if "times_the_eager_network" in figures:
        print(f", and is {figures['times_the_eager_network']:.1f} times as fast as the eager network", end="")
    print(".")
    write_figures(args.json, figures)
    return 0


def _export(args: argparse.Namespace) -> "tuple[Config, Path, Network | None]":
    """Return the config, the folder of an export, and the network; None where MODEL is an export.

    Any other network is exported to the cache. Published weights that no override requests are replaced by
    random ones, which take the same time and need no download.
    """
    from ppcls.build import build_fresh, build_to_run
    from ppcls.inference.cache import export_key
    from ppcls.inference.load import export_to_cache

    config, export = read_model(args)
    if export is not None:
        return config, export, None
    requested = {override.partition("=")[0].strip() for override in args.override}
    if config.model.weights == "pretrained" and "model.weights" not in requested:
        config = replace(config, model=replace(config.model, weights=None, variant=None))
    network = build_fresh(config, log) if config.model.weights is None else build_to_run(config, log)
    return config, export_to_cache(export_key(config), network, log), network
