"""The options of a config with their types, defaults and meanings, as config.py declares them."""

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from fnmatch import fnmatch
from typing import Any, NamedTuple, get_type_hints

import yaml

from ppcls import config
from ppcls.errors import ConfigError
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
        meanings = _comments(inspect.getsource(config))
    except OSError as error:
        raise ConfigError("The text of ppcls/config.py, which has the meanings, is not installed.") from error
    return list(_options_of(config.Config, "", meanings))


def find_options(words: Sequence[str]) -> list[Option]:
    """Return the options that one of `words` names: a part of the name, a pattern such as "optim.*", or what
    other projects call it; if there is none, those with the word in their meaning. Without words, all.

    Raises ConfigError for a word that finds nothing.
    """
    options = list_options()
    found = set()
    for word in map(str.lower, words):
        named = [
            option
            for option in options
            if word in option.name
            or fnmatch(option.name, word)
            or word in config.SYNONYMS.get(option.name, "").split()
        ]
        matching = named or [option for option in options if word in option.meaning.lower()]
        if not matching:
            raise ConfigError(
                "No option has this in its name or meaning. Expected: a section, such as optim, a part of "
                f"a name, such as lr, or no word for all. Received: {word}"
            )
        found.update(matching)
    return [option for option in options if option in found or not words]


def to_markdown(options: Sequence[Option]) -> str:
    """Return the page docs/options.md."""
    lines = [
        "# Options",
        "",
        "Each option of a config, as [ppcls/config.py](../ppcls/config.py) declares it. `ppcls options WORD`",
        "prints those with a word in their names. `ppcls options --markdown` writes this page.",
    ]
    section = None
    for option in options:
        own, _, name = option.name.rpartition(".")
        if own != section:
            section = own
            lines += ["", f"## {own or 'Without a section'}", "", "| option | default | values | meaning |"]
            lines += ["|---|---|---|---|"]
        default = f"`{option.default}`" if option.default else "must be given"
        cells = (f"`{name}`", default, option.values, option.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _options_of(section: type, prefix: str, meanings: dict[str, dict[str, str]]) -> Iterator[Option]:
    hints = get_type_hints(section, include_extras=True)
    for item in fields(section):
        hint = hints[item.name]
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _options_of(hint, f"{prefix}{item.name}.", meanings)
            continue
        meaning = meanings[section.__name__].get(item.name, "")
        yield Option(f"{prefix}{item.name}", describe_type(hint), _default(item), meaning)


def _default(item: Any) -> str:
    """Return a field's default as YAML has it."""
    if item.default is MISSING and item.default_factory is MISSING:
        return ""
    value = item.default_factory() if item.default is MISSING else item.default
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _comments(source: str) -> dict[str, dict[str, str]]:
    """Return, by class and field, the comments of a module that stand on the lines of a field."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                lines = range(item.lineno, (item.end_lineno or item.lineno) + 1)
                text = " ".join(comments[line] for line in lines if line in comments)
                found.setdefault(node.name, {})[item.target.id] = text
    return found
