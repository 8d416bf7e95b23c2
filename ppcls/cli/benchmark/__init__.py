"""Measure speed on this machine. Each module declares its commands, runs what ppcls.benchmarks measures, and
prints the figures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ppcls.cli.benchmark import data, engines, serve, train
from ppcls.errors import ConfigError
from ppcls.files import require_place


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure speed on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (data, engines, train, serve):
        module.add_commands(commands)
    for command in commands.choices.values():
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args(argv)
    for name in ("resize_short", "crop_size", "batch_size", "rounds", "repeat", "steps", "requests", "queue"):
        value = getattr(args, name, 1)
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1. Received: {value}")
    if args.json is not None:
        require_place(args.json, "--json")
    return args.run(args)
