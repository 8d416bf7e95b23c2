"""`ppcls benchmark serve`: a server under load."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from ppcls.cli.benchmark.figures import HEADING, cells, write_figures
from ppcls.cli.common import log, require_engine
from ppcls.errors import ConfigError
from ppcls.processor import processor


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="a server under load, compared with the predictor itself",
        description="Start `ppcls serve` on this machine, and measure it by a load generator in a process of "
        "its own: the throughput for 8 clients and the time of one client, in turns with the predictor on "
        "the same files; then an overload of planned arrivals at 4 times the throughput.",
    )
    command.add_argument(
        "model", metavar="MODEL", help="as for `ppcls serve`: an export or what it is made of"
    )
    command.add_argument("-i", "--input", required=True, help="a folder or a glob pattern of images")
    command.add_argument("--engine", default="auto", help="default: the fastest for one image")
    command.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="measurements of each (default 3)"
    )
    command.add_argument(
        "--seconds", type=float, default=8.0, metavar="S", help="of each measurement (default 8)"
    )
    command.add_argument(
        "--requests", type=int, default=10_000, metavar="N", help="of the overload (default 10000)"
    )
    command.add_argument("--queue", type=int, default=64, metavar="N", help="the server's queue (default 64)")
    command.set_defaults(run=serve)


def serve(args: argparse.Namespace) -> int:
    from ppcls.benchmarks.serve import CLIENTS, LoadProcess, ServerProcess, Sizes, measure_serve
    from ppcls.data.folders import find_images
    from ppcls.inference.load import load
    from ppcls.inference.versions import versions

    require_engine(args.engine, "auto", "measure", "eager")
    if args.queue < CLIENTS:
        raise ConfigError(f"--queue must hold the {CLIENTS} clients. Received: {args.queue}")
    files = find_images(args.input)
    predictor = load(args.model, args.engine, log=log)
    options = [args.model, "--engine", args.engine, "--queue", str(args.queue)]
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(options, Path(folder) / "server.log")
        try:
            generator = LoadProcess(server.port, "/predict", files)
            try:
                sizes = Sizes(args.rounds, args.seconds, args.requests, args.queue)
                figures = measure_serve(predictor, server, generator, files, sizes)
            finally:
                generator.stop()
        finally:
            code = server.stop()
    figures |= {"model": args.model, "engine": predictor.engine.name, "files": len(files), "exit_code": code}
    figures |= {"processor": processor(), "versions": versions()}
    _print_serve(figures)
    write_figures(args.json, figures)
    return 0


def _print_serve(figures: dict[str, Any]) -> None:
    print(f"{figures['model']}, {figures['engine']}, {figures['files']} files, {figures['processor']}")
    print(f"{'images per second':28}{HEADING}")
    for name, row in figures["images_per_second"].items():
        print(f"{name:28}{cells(row, '8.1f')}")
    share, one, cost = figures["share_of_stream"], figures["milliseconds_of_one"], figures["cost_of_one"]
    print(f"share of the stream's speed {cells(share, '8.2f')}")
    print(
        f"one client: {one['server']:.2f} ms, predictor(bytes) {one['predictor']:.2f} ms; the server costs "
        f"{cost['median']:.2f} ms ({cost['min']:.2f} to {cost['max']:.2f})"
    )
    over = figures["overload"]
    counts = ", ".join(f"{count} of {status}" for status, count in over["statuses"].items())
    print(
        f"overload: {over['requests']} arrivals at {over['planned_rate']:.0f} a second: {counts}; goodput "
        f"{over['goodput']:.1f} a second, {over['share_of_capacity']:.2f} of the capacity, "
        f"{over['capacity']:.1f}"
    )
    for name in ("accepted", "rejected"):
        if over[name] is not None:
            print(f"  {name}: " + ", ".join(f"{key} {value:.0f} ms" for key, value in over[name].items()))
    lag, memory = over["generator"]["lag"], over["memory"]
    print(f"  2 x queue / goodput: {over['accepted_limit']:.0f} ms")
    print("  memory of the server: " + ", ".join(f"{key} {value:.0f} MiB" for key, value in memory.items()))
    print(
        f"  the server's event loop used {over['loop_processor_share']:.2f} of a core, the generator "
        f"{over['generator']['processor_share']:.2f}; it was late by {lag['p50']:.1f} ms (p50), "
        f"{lag['p99']:.1f} ms (p99)"
    )
