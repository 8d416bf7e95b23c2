"""The command `ppcls`: all tools of an installed package. Each has its own --help."""

import platform
import sys
from importlib import import_module

from ppcls.commands import program, run
from ppcls.errors import ConfigError, suggest

COMMANDS = {
    "train": ("ppcls.cli.train", "train or fine-tune a network"),
    "eval": ("ppcls.cli.eval", "measure the accuracy on labelled images"),
    "compare": ("ppcls.cli.compare", "say whether two evaluations differ by more than chance"),
    "infer": ("ppcls.cli.infer", "classify image files"),
    "serve": ("ppcls.cli.serve", "classify pictures that come by HTTP"),
    "export": ("ppcls.cli.export", "write a network to run without this project"),
    "convert": ("ppcls.cli.convert", "convert weights between the formats of projects"),
    "benchmark": ("ppcls.cli.benchmark", "measure speed on this machine"),
    "options": ("ppcls.cli.options", "list the options of a config: types, defaults and meanings"),
    "data": ("ppcls.cli.data", "make lists of your own images, and check files"),
}


def main() -> None:
    """Run the command that the first argument names."""
    run(lambda _: _call(sys.argv[1:]))


def _call(arguments: list[str]) -> int:
    start = " ".join(program())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {start} COMMAND ...\n")
        for name, (_, words) in COMMANDS.items():
            print(f"  {name:10} {words}")
        print(f"\n{start} COMMAND --help says more; {start} --version gives the versions.")
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(_version())
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise ConfigError(f"Unknown command. Received: {command}; {suggest(command, COMMANDS)}")
    sys.argv = [f"{start} {command}", *rest]  # the name of the program in argparse's usage line
    return import_module(COMMANDS[command][0]).main(rest)


def _version() -> str:
    """Return the versions of ppcls, Paddle and Python. Imports no Paddle."""
    from ppcls.inference.versions import versions

    found = versions()
    paddle = [f"{name} {found[name]}" for name in ("paddlepaddle", "paddlepaddle-gpu") if name in found]
    python = f"Python {platform.python_version()}"
    return f"ppcls {found['ppcls']}, {', '.join(paddle) or 'Paddle is not installed'}, {python}"
