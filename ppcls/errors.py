"""Errors about what the user gave: config, images, weights. Tools print them without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class PpclsError(ValueError):
    """Wrong input. The message says what is wrong, what was expected, what came and what to do."""


class Stopped(Exception):
    """A signal asked the run to end, on all processes alike."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


class ConfigError(PpclsError):
    """An option, its value, or two options that exclude each other."""


class DataError(PpclsError):
    """A list file, a folder or an image."""


class WeightsError(PpclsError):
    """A file of weights, or one that does not fit the network."""


class ExportError(PpclsError):
    """An exported model: its folder, its files, or the engine that is to run it."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """The nearest valid name, or all of them: the end of an error about an unknown one."""
    choices = list(choices)
    by_lower = {choice.lower(): choice for choice in choices}
    close = get_close_matches(name.lower(), by_lower, n=1)
    if close:
        return f"did you mean {by_lower[close[0]]}?"
    return f"choose from {', '.join(choices)}."
