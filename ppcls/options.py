"""The options of a config with their types, defaults and meanings, as config.py declares them."""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NamedTuple, get_type_hints

from ppcls import config
from ppcls.errors import ConfigError
from ppcls.option_names import SYNONYMS
from ppcls.typed import describe_type


class Option(NamedTuple):
    """An option by its full name. values: what it takes, in words. default: as YAML, "" if it must be given.
    meaning: the comment behind it in config.py."""

    name: str
    values: str
    default: str
    meaning: str


def list_options() -> list[Option]:
    """Return all options in the order of config.py. Raises ConfigError if its text is not installed."""
    try:
        return list(_options_of(config.Config, ""))
    except OSError as error:
        raise ConfigError("The text of ppcls/config.py, which has the meanings, is not installed.") from error


def find_options(words: Sequence[str]) -> list[Option]:
    """Return the options that one of `words` names: a part of the name, such as "optim.", or what other
    projects call it; if there is none, those with the word in their meaning. Without words, all.

    Raises ConfigError for a word that finds nothing.
    """
    options = list_options()
    found = set() if words else set(options)
    for word in map(str.lower, words):
        named = {o for o in options if word in o.name or word in SYNONYMS.get(o.name, "").split()}
        matching = named or {option for option in options if word in option.meaning.lower()}
        if not matching:
            raise ConfigError(
                "No option has this in its name or meaning. Expected: a section, such as optim, a part of "
                f"a name, such as lr, or no word for all. Received: {word}"
            )
        found |= matching
    return [option for option in options if option in found]


def _options_of(section: type, prefix: str) -> Iterator[Option]:
    hints, meanings = get_type_hints(section, include_extras=True), comments_of(section)
    for item in fields(section):
        hint, name = hints[item.name], prefix + item.name
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _options_of(hint, f"{name}.")
        else:
            yield Option(name, describe_type(hint), _default(item), meanings.get(item.name, ""))


def _default(item: Any) -> str:
    """Return a field's default as YAML has it."""
    if item.default is MISSING and item.default_factory is MISSING:
        return ""
    return config.as_yaml(item.default_factory() if item.default is MISSING else item.default)


def comments_of(section: type) -> dict[str, str]:
    """Return the comments on the lines of each field of a dataclass."""
    found: defaultdict[str, str] = defaultdict(str)
    name = ""
    for line in inspect.getsource(section).splitlines():
        if declared := re.match(r"    (\w+): ", line):
            name = declared[1]
        found[name] = f"{found[name]} {line.partition('# ')[2]}".strip()
    return found
