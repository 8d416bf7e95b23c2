"""The command `ppcls`: the tools for those who installed the package. Each has its own --help."""

import sys
from importlib import import_module

from ppcls.cli.common import run
from ppcls.errors import ConfigError, suggest

COMMANDS = {
    "train": ("ppcls.cli.train", "train or fine-tune a network"),
    "eval": ("ppcls.cli.eval", "accuracy on labelled images"),
    "infer": ("ppcls.cli.infer", "classes of image files"),
    "export": ("ppcls.cli.export", "write a network to run without its code"),
    "convert": ("ppcls.cli.convert", "weights from one project's format to another's"),
    "benchmark": ("ppcls.cli.benchmark", "measure speed on this machine"),
    "data": ("ppcls.data.__main__", "lists for your own images, and what is wrong with files"),
}


def main() -> None:
    """Dispatch to the command that the first argument names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: ppcls COMMAND ...\n")
        for name, (_, words) in COMMANDS.items():
            print(f"  {name:10} {words}")
        print("\nppcls COMMAND --help says more.")
        sys.exit(0 if arguments else 2)
    run(lambda _: _call(arguments))


def _call(arguments: list[str]) -> int:
    command, *rest = arguments
    if command not in COMMANDS:
        raise ConfigError(f"Unknown command. Received: {command}; {suggest(command, COMMANDS)}")
    sys.argv = [f"ppcls {command}", *rest]  # what argparse calls the program in its usage
    return import_module(COMMANDS[command][0]).main(rest)
