"""Typed sections of options: values as YAML gives them, converted by a dataclass's type hints and rules."""

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ppcls.errors import ConfigError, suggest


@dataclass(frozen=True)
class Rule:
    """A condition that a value must meet beyond its type, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def option_names(section: type, prefix: str = "") -> Iterator[str]:
    """Yield the full names of all options and sections below a dataclass."""
    for name, hint in get_type_hints(section).items():
        yield prefix + name
        if is_dataclass(hint) and isinstance(hint, type):
            yield from option_names(hint, f"{prefix}{name}.")


def describe_type(hint: Any) -> str:
    """Return the values that an option of this type takes, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return ", or ".join("null" if kind is type(None) else describe_type(kind) for kind in arguments)
    if origin is Annotated:
        rule = arguments[1].words.partition(":")[0]
        return rule if get_origin(arguments[0]) is tuple else f"{describe_type(arguments[0])}, {rule}"
    if origin is Literal:
        return ", ".join(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list: {describe_type(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: {describe_type(arguments[0])}"
    if origin is dict:
        return f"pairs {{name: value}}, a value: {describe_type(arguments[1])}"
    return {int: "a whole number", float: "a number", bool: "true, false", str: "text"}[hint]


def build_section(section: type, values: dict, renamed: Mapping[str, str], prefix: str = "") -> Any:
    """Return the dataclass `section`, filled with `values`.

    renamed: earlier names of options, with their present names; under "*.name" what an option that no section
    has, or another one, may mean. prefix: the section's own name and a dot.
    Raises ConfigError for an unknown option, a missing one, a value of another type, and a broken rule.
    """
    hints = get_type_hints(section, include_extras=True)
    converted = {}
    for name, value in values.items():
        option = f"{prefix}{name}"
        if option in renamed:
            raise ConfigError(f"{option} is now called {renamed[option]}. Received: {value!r}")
        if name not in hints:
            meant = renamed.get(f"*.{name}".lower().replace("-", "_"))
            nearest = suggest(option, [prefix + known for known in hints])
            raise ConfigError(f"unknown option {option}; {f'did you mean {meant}?' if meant else nearest}")
        converted[name] = _convert(hints[name], value, option, renamed)
    for known in fields(section):
        is_required = known.default is MISSING and known.default_factory is MISSING
        if is_required and known.name not in converted:
            raise ConfigError(f"{prefix}{known.name} is missing.")
    return section(**converted)


def _convert(hint: Any, value: Any, option: str, renamed: Mapping[str, str]) -> Any:
    """Return the value as the hint's type. Raises ConfigError if it has another or breaks a rule."""
    if is_dataclass(hint) and isinstance(hint, type):
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{option} is a section of options. Received: {value!r}")
        return build_section(hint, value or {}, renamed, option + ".")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, option, renamed)
    if origin is Annotated:
        value = _convert(arguments[0], value, option, renamed)
        rule = arguments[1]
        if not rule.holds(value):
            raise ConfigError(f"{option} must be {rule.words}. Received: {value!r}")
        return value
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{option} must be one of {', '.join(arguments)}. Received: {value!r}; "
                f"{suggest(str(value), arguments)}"
            )
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, option, renamed)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{option} must be pairs such as {{name: value}}. Received: {value!r}")
        key_hint, item_hint = arguments
        return {
            _convert(key_hint, key, f"a name in {option}", renamed): _convert(
                item_hint, item, f"{option}[{key}]", renamed
            )
            for key, item in value.items()
        }
    return _convert_scalar(hint, value, option)


def _convert_tuple(hints: tuple, value: Any, option: str, renamed: Mapping[str, str]) -> tuple:
    has_any_length = hints[-1] is Ellipsis
    if not isinstance(value, (list, tuple)) or not (has_any_length or len(value) == len(hints)):
        words = "a list" if has_any_length else f"a list of {len(hints)} numbers"
        raise ConfigError(f"{option} must be {words}. Received: {value!r}")
    hints = hints[:1] * len(value) if has_any_length else hints
    return tuple(_convert(hint, item, option, renamed) for hint, item in zip(hints, value, strict=True))


def _convert_scalar(kind: type, value: Any, option: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-5 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else float("inf")
    if kind is float and isinstance(value, float) and value - value != 0:
        raise ConfigError(f"{option} must be a finite number. Received: {value!r}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise ConfigError(f"{option} must be {words}. Received: {value!r}")
    return value
