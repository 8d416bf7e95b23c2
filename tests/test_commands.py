"""Messages name commands as their reader started the running one, quoted for a shell."""

import shlex
import sys

import pytest
from helpers import ROOT

from ppcls.cli import main as command
from ppcls.commands import TOOLS, command_line, same_command


@pytest.mark.parametrize(
    ("started", "eval_line", "data_line"),
    [
        ("/usr/bin/ppcls", "ppcls eval", "ppcls data"),
        ("ppcls train", "ppcls eval", "ppcls data"),
        ("/a/site-packages/ppcls/__main__.py", "python -m ppcls eval", "python -m ppcls data"),
        ("python -m ppcls train", "python -m ppcls eval", "python -m ppcls data"),
        ("/a/ppcls/data/__main__.py", "python -m ppcls eval", "python -m ppcls.data"),
        ("tools/train.py", "python tools/eval.py", "python -m ppcls.data"),
        ("../my clone/tools/train.py", "python '../my clone/tools/eval.py'", "python -m ppcls.data"),
        ("/a/pytest/__main__.py", "ppcls eval", "ppcls data"),
        ("notebook.py", "ppcls eval", "ppcls data"),
        ("", "ppcls eval", "ppcls data"),
    ],
)
def test_a_command_is_named_as_the_running_one(monkeypatch, started, eval_line, data_line):
    monkeypatch.setattr(sys, "argv", [started])
    assert command_line("eval") == eval_line and command_line("data") == data_line
    odd = "it's a run; rm -rf $HOME"
    assert shlex.split(command_line("eval", "-c", odd))[-2:] == ["-c", odd]


@pytest.mark.parametrize(
    ("started", "line"),
    [
        ("ppcls infer", "ppcls infer RUN"),
        ("python -m ppcls export", "python -m ppcls export RUN"),
        ("my clone/tools/export_model.py", "python 'my clone/tools/export_model.py' RUN"),
        ("/usr/bin/ppcls", "ppcls eval RUN"),
        ("notebook.py", "ppcls eval RUN"),
        ("", "ppcls eval RUN"),
    ],
)
def test_a_message_repeats_the_running_command(monkeypatch, started, line):
    monkeypatch.setattr(sys, "argv", [started])
    assert same_command("RUN") == line


def test_a_command_without_a_tool_is_named_by_the_module(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/train.py"])
    assert command_line("options", "optim") == "python -m ppcls options optim"


def test_each_tool_and_command_exists():
    assert set(TOOLS) | {"compare", "data", "options"} == set(command.COMMANDS)
    assert all((ROOT / "tools" / f"{name}.py").is_file() for name in TOOLS.values())
