"""Errors about the user's input: config, images, weights. Tools print them without a traceback."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class PpclsError(ValueError):
    """Wrong input. The message says what is wrong, what was expected, what was received and what to do."""


class Stopped(Exception):
    """A signal ended the run, in all of its processes."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


class ConfigError(PpclsError):
    """Wrong option or value, or two options that exclude each other."""


class DataError(PpclsError):
    """Wrong list file, folder or image."""


class WeightsError(PpclsError):
    """Wrong file of weights, or one that does not fit the network."""


class ExportError(PpclsError):
    """Wrong export: its folder, its files, or the engine that runs it."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest valid name, or all of them."""
    choices = list(choices)
    by_lower = {choice.lower(): choice for choice in choices}
    close = get_close_matches(name.lower(), by_lower, n=1)
    if close:
        return f"did you mean {by_lower[close[0]]}?"
    return f"choose from {', '.join(choices)}."


def first_few(names: Sequence[object], count: int = 5) -> str:
    """Return the first names in a line, each shortened, and dots if there are more."""
    return ", ".join(str(name)[:200] for name in names[:count]) + (", ..." if len(names) > count else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2 images, 0 classes."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def first_line(error: BaseException) -> str:
    """Return the line of another library's error that tells most, with a full stop at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "error" in line or "fail" in line.lower()]
    text = (telling or lines or [type(error).__name__])[0][:300]
    return text if text.endswith(".") else text + "."


def why_unreadable(error: BaseException) -> str:
    """Return the reason of an error while a file was read, in a line: a file that is missing, a key that is
    missing in it, or what the error says."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    return " ".join(str(error).split())
