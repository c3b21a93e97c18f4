"""YAML and dictionaries to frozen dataclasses and back: unknown keys and wrong types are errors."""

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron_nca.errors import ConfigError


def build(cls: type, values: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from a mapping, recursively.

    `where` is the dotted path of the mapping in its file, for messages.
    Raises ConfigError for a key that `cls` lacks (naming the nearest) and for a value of another type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'the file'}: expected a mapping, got {values!r}. Cure: give {_wanted(cls)}.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in values:
        if key not in names:
            raise ConfigError(f"{_join(where, key)}: unknown setting.{_known_place(key, hints, names)}")
    missing = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in values and _is_required(f)]
    if missing:
        cure = f"Cure: give {_wanted(hints[missing[0]])}."
        raise ConfigError(f"{_join(where, missing[0])}: this setting is required and was not given. {cure}")
    converted = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:  # of a class that knows its own settings, not where it stands
        raise ConfigError(_placed(where, str(error))) from error


def suggest(name: str, known: list[str]) -> str:
    """A sentence naming the known name nearest to `name`, or listing all."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(known)}."


def to_dict(config: Any) -> Any:
    """A dataclass as plain dictionaries and lists, fit for YAML and JSON."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    return config


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_EXAMPLES = {int: "8", float: "1e-4", bool: "true", str: "text"}


class _Loader(yaml.SafeLoader):
    """PyYAML's, but a key that is given twice is an error, as YAML has it; theirs drops the first without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ConfigError if it is missing or not YAML, or gives a key twice."""
    try:
        return _Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        cure = "check the path and your rights."
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Cure: {cure}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = f"{said or ' '.join(str(error).split())}{place}"
        raise ConfigError(f"{path}: is not valid YAML: {reason}. Cure: correct it there.") from error


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """A ConfigError about the settings of a file begins with its path, once."""
    try:
        yield
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(f"{path}: ") else f"{path}: {message}") from error


def to_yaml(config: Any) -> str:
    """A dataclass as YAML text, keys in the order of its fields."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def apply_overrides(values: dict, overrides: list[str]) -> dict:
    """A copy of `values` with each ``a.b=value`` of `overrides` set; values are read as YAML."""
    if overrides and not isinstance(values, dict):
        raise ConfigError(f"override {overrides[0]!r}: the file is no mapping of settings, but {values!r}.")
    result = _copy(values)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: expected KEY.KEY=VALUE, for example phases.text.iterations=100.")
        *parents, leaf = dotted.split(".")
        node = result
        for depth, parent in enumerate(parents):
            if node.get(parent) is None:  # a written recipe says null for what is left out
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: '{'.'.join(parents[: depth + 1])}' is not a mapping.")
        try:
            node[leaf] = _Loader(text).get_single_data()
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML. Cure: quote it.") from error
    return result


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _placed(where: str, message: str) -> str:
    """A message that begins with a setting, with `where` before it, less what it begins with already."""
    parts = where.split(".")
    for start in range(len(parts)):
        if message.startswith(".".join(parts[start:]) + "."):
            return ".".join([*parts[:start], message])
    return _join(where, message)


def _known_place(key: object, hints: dict[str, Any], names: list[str]) -> str:
    """Where an unknown key may belong: in a section of the mapping, which is a usual mistake, or under a like name."""
    for name in names:
        section = _first(hints[name])
        if dataclasses.is_dataclass(section) and any(key == field.name for field in dataclasses.fields(section)):
            return f" Did you mean '{name}.{key}'? Cure: write it in the section {name}."
    return f"{suggest(key, names)} Cure: correct its name, or leave it out."


def _wanted(hint: Any) -> str:
    """What a setting of this type may be, in words, with an example in YAML."""
    hint = _first(hint)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    kind = "a list" if origin is tuple else "a mapping"
    return _WORDS.get(hint) or f"{kind}, such as {_example(hint)}"


def _example(hint: Any) -> str:
    hint = _first(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return str(arguments[0])
    if origin is tuple:
        return f"[{', '.join(_example(each) for each in arguments if each is not Ellipsis)}]"
    if origin is dict:
        return f"{{NAME: {_example(arguments[1])}}}"
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        fields = [f for f in dataclasses.fields(hint) if f.init]
        shown = [f.name for f in fields if _is_required(f)] or [fields[0].name]
        return f"{{{', '.join(f'{name}: {_example(hints[name])}' for name in shown)}}}"
    return _EXAMPLES.get(hint, "VALUE")


def _first(hint: Any) -> Any:
    """The type that a value is read as: the first of a union that is not None."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    return next(each for each in typing.get_args(hint) if each is not type(None))


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if isinstance(value, bool) and _first(hint) is str:
            cure = "Cure: put it in quotes, or write nothing in its place."
            raise ConfigError(f"{where} = {value!r}: expected str, got bool. {cure}")
        return None if value is None and type(None) in arguments else _convert(_first(hint), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            cure = "Cure: choose one of them."
            raise ConfigError(f"{where} = {value!r}: not one of {', '.join(map(repr, arguments))}. {cure}")
        return value
    if origin is tuple:
        return _convert_tuple(hint, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r}: expected a mapping. Cure: give {_wanted(hint)}.")
        return {str(key): _convert(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    return _convert_scalar(hint, value, where)


def _convert_tuple(hint: Any, value: Any, where: str) -> tuple:
    arguments = typing.get_args(hint)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} = {value!r}: expected a list. Cure: give {_wanted(hint)}.")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        reason = f"expected {len(arguments)} values, got {len(value)}."
        raise ConfigError(f"{where} = {value!r}: {reason} Cure: give {_wanted(hint)}.")
    return tuple(_convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):
        value = _float_from_text(value)  # YAML 1.1 reads 1e-4 as text
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        # YAML 1.1 reads 23:50:00 as the number 85800.
        cure = "put it in quotes" if hint is str and isinstance(value, (int, float)) else f"give {_wanted(hint)}"
        raise ConfigError(f"{where} = {value!r}: expected {hint.__name__}, got {type(value).__name__}. Cure: {cure}.")
    return _finite(value, where) if hint is float else value


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):  # a nan passes every check of a range that asks for what is wrong
        raise ConfigError(f"{where} = {value!r}: is not a finite number. Cure: give one.")
    return value


def _float_from_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
