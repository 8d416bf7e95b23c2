"""Commands of this project: how they are run, and how messages name them to those who started one."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ppcls import distributed
from ppcls.errors import PpclsError, Stopped
from ppcls.streams import lost_output, make_streams_last

WRONG_INPUT = 2

# The tools of a clone, by the command of the same work.
TOOLS = {"train": "train", "eval": "eval", "infer": "infer", "export": "export_model"}
TOOLS |= {"convert": "convert_weights", "benchmark": "benchmark", "serve": "serve"}


def program() -> list[str]:
    """Return how `ppcls` was started, or can be: as an installed command, or as Python's module."""
    script = Path(sys.argv[0])
    folders = script.parent.name, script.parent.parent.name  # ppcls/, ppcls/data/
    is_module = script.name == "__main__.py" and "ppcls" in folders
    is_module = is_module or sys.argv[0].startswith("python -m ppcls")
    return ["python", "-m", "ppcls"] if is_module else ["ppcls"]


def command_line(name: str, *arguments: object) -> str:
    """Return a line for a shell that runs a command: as a tool of the clone if one of them is running."""
    script = Path(sys.argv[0])
    is_tool = script.parent.name == "tools" and script.suffix == ".py"
    if name == "data" and (is_tool or script.parts[-2:] == ("data", "__main__.py")):
        start = ["python", "-m", "ppcls.data"]
    elif is_tool and name not in TOOLS:
        start = ["python", "-m", "ppcls", name]
    elif is_tool:
        start = ["python", str(script.with_name(f"{TOOLS[name]}.py"))]
    else:
        start = [*program(), name]
    return shlex.join([*start, *map(str, arguments)])


def same_command(*arguments: object) -> str:
    """Return a line for a shell that runs the running command with other arguments; outside of one, eval."""
    started = Path(sys.argv[0].split()[-1] if sys.argv[0] else "").stem  # "ppcls infer", tools/infer.py
    names = {tool: name for name, tool in TOOLS.items()} | {name: name for name in TOOLS}
    return command_line(names.get(started, "eval"), *arguments)


def run(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run a tool and leave with its exit code: 2 for wrong input, with the reason and no traceback; 128 plus
    the signal's number for a run that a signal ended; 1 if what it printed could not be written."""
    make_streams_last()
    try:
        code = main(None)
    except PpclsError as error:
        print(f"error: {error}", file=sys.stderr)
        code = WRONG_INPUT
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        code = WRONG_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Stopped as stop:
        code = 128 + stop.number
    except RuntimeError:
        # Another process of the run failed first: this one only lost the connection. The launcher
        # shows the log of the first to leave, so leave after it.
        if distributed.world_size() > 1:
            time.sleep(5)
        raise
    if reason := lost_output():
        print(f"error: the output could not be written: {reason}", file=sys.stderr)
        code = code or 1
    if "paddle" in sys.modules and distributed.world_size() == 1:
        _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: int) -> None:
    """Leave without taking Paddle apart, which takes a third of a second. Files are closed by now."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # Python itself reports it when it ends
        return
    os._exit(code)
