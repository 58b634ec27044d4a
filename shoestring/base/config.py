"""Settings: strict, frozen, and laid over one another with errors a person can act on (source: ours).

A component owns its config class (a subclass of `Config`), and its defaults stand there and
nowhere else. A recipe returns one such config; TOML files and `--set a.b=c` are laid over it.
Absent means None: a setting that may be None has None as its default, for TOML has no null.
"""

from __future__ import annotations

import difflib
import enum
import json
import tomllib
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from shoestring.base.errors import ConfigError

C = TypeVar("C", bound="Config")
Key = tuple[str, ...]

_SHOWN_ERRORS = 5
_REPAIRS = 3  # text to list, then its items to text; one more finds nothing left to mend
_NOT_A_LIST = frozenset({"list_type", "tuple_type", "set_type", "frozen_set_type"})
_NOT_TEXT = frozenset({"string_type", "path_type"})


class Config(BaseModel):
    """Base of every config class: no unknown keys, no conversions between types, no changes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Hold every subclass to "absent means None", without which `to_toml` would not round-trip."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if type(None) in get_args(field.annotation) and field.get_default() is not None:
                raise TypeError(f"{cls.__name__}.{name} may be None, so its default has to be None")


def load_config(base: C, toml_paths: Sequence[Path] = (), sets: Sequence[str] = ()) -> C:
    """A recipe's config with TOML files and then `a.b=c` texts laid over it; the last one wins.

    The value of a text is read as TOML (`3`, `1e-3`, `true`, `["a", "b"]`) and taken as plain
    text where it is none, or where the setting wants text; one value is a list of one where the
    setting wants a list.

    Raises:
        ConfigError: for a file that cannot be read, and for every setting that is unknown (with
            the nearest known one), has the wrong type or contradicts another.

    Example:
        load_config(pretrain(), [Path("mine.toml")], ["fleet.members.workers=4"])
    """
    settings = _plain(base.model_dump(serialize_as_any=True))
    origins: dict[Key, str] = {}
    for path in toml_paths:
        overlay = read_toml(path)
        _lay_over(settings, overlay)
        origins.update((key, str(path)) for key, _ in _leaves(overlay))
    raw: dict[Key, str] = {}
    for text in sets:
        key, value, raw_value = _parse_set(text)
        _lay_over(settings, _nested(key, value))
        origins[key] = "--set"
        raw[key] = raw_value
    return _validate(type(base), settings, origins, raw)


def parse_config(cls: type[C], settings: dict[str, Any], origin: str = "") -> C:
    """A config of class `cls` from plain data, as a TOML file gives it; `origin` names it in errors.

    Raises:
        ConfigError: as `load_config`.
    """
    plain = _plain(settings)
    return _validate(cls, plain, {key: origin for key, _ in _leaves(plain)}, {})


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        ConfigError: when it cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings {path}: {error.strerror}", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", "mend the file at that place") from error


def to_toml(config: Config) -> str:
    """All settings as TOML; `parse_config(type(config), tomllib.loads(text))` gives an equal config.

    Raises:
        ConfigError: when a list or table holds None, which TOML cannot say.
    """
    lines: list[str] = []
    _write_table((), _plain(config.model_dump(serialize_as_any=True)), lines)
    return "\n".join(lines).strip("\n") + "\n"


def toml_value(value: Any) -> str:
    """A setting's value as TOML, and so `--set`, has it.

    Raises:
        ConfigError: it has none there, as None has.
    """
    return _toml_value(_plain(value))


def known_keys(cls: type[Config]) -> list[str]:
    """Every setting of a config class by its full dotted name, tables included."""
    return [".".join(key) for key in _known_keys(cls, (), ())]


def _validate(cls: type[C], settings: dict[str, Any], origins: dict[Key, str], raw: dict[Key, str]) -> C:
    for _ in range(_REPAIRS):
        try:
            return _validate_once(cls, settings)
        except ValidationError as error:
            if not _repair(settings, error.errors(include_url=False), raw):
                break
    try:
        return _validate_once(cls, settings)
    except ValidationError as error:
        raise _config_error(cls, settings, error.errors(include_url=False), origins) from error


def _validate_once(cls: type[C], settings: dict[str, Any]) -> C:
    # By way of JSON: strict about types, and yet a list may become a tuple and text a path.
    return cls.model_validate_json(json.dumps(settings))


def _repair(settings: dict[str, Any], errors: Iterable[ErrorDetails], raw: dict[Key, str]) -> bool:
    """Read values of `--set` again as the setting wants them: text, or a list of one."""
    changed = False
    for error in errors:
        key = _key_of(error, settings)
        # The item of a list of one that an earlier repair made, never one that was typed as a list.
        single = key[-1:] == ("0",) and key[:-1] in raw and not raw[key[:-1]].lstrip().startswith("[")
        owner = key[:-1] if single else key
        if owner not in raw:
            continue
        if error["type"] in _NOT_TEXT and not isinstance(error["input"], dict | list):
            value: Any = [raw[owner]] if single else raw[owner]
        elif error["type"] in _NOT_A_LIST and not isinstance(error["input"], dict | list):
            value = [error["input"]]
        else:
            continue
        _lay_over(settings, _nested(owner, value))
        changed = True
    return changed


def _config_error(
    cls: type[Config], settings: dict[str, Any], errors: list[ErrorDetails], origins: dict[Key, str]
) -> ConfigError:
    what: list[str] = []
    todo: list[str] = []
    for error in errors[:_SHOWN_ERRORS]:
        key = _key_of(error, settings)
        said, advice = _explain(cls, key, error)
        origin = _origin_of(key, origins)
        what.append(f"{said} (from {origin})" if origin else said)
        if advice not in todo:
            todo.append(advice)
    if len(errors) > _SHOWN_ERRORS:
        what.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    return ConfigError("; ".join(what), "; ".join(todo))


def _explain(cls: type[Config], key: Key, error: ErrorDetails) -> tuple[str, str]:
    """(what happened, what to do) for one error."""
    name = ".".join(key) if key else "the settings"
    if error["type"] == "extra_forbidden":
        near = nearest_key(cls, name)
        return f"unknown setting `{name}`, the nearest known one is `{near}`", f"did you mean `{near}`?"
    if error["type"] == "missing":
        return f"the setting `{name}` is missing", f"give a value for `{name}`"
    if error["type"] == "value_error":
        text = error["msg"].removeprefix("Value error, ")
        return f"`{name}`: {text}", f"change `{name}` or what it contradicts"
    expected = error["msg"].removeprefix("Input should be ").replace("an object", "a table of settings")
    given = f"{json.dumps(error['input'])} ({_type_name(error['input'])})"
    return f"`{name}` should be {expected}, but is {given}", f"give `{name}` {expected}"


def nearest_key(cls: type[Config], name: str) -> str:
    """The known setting most like `name`: the same last part anywhere first, then the closest spelling."""
    keys = known_keys(cls)
    last = name.rpartition(".")[2]
    same_last = [key for key in keys if key.rpartition(".")[2] == last]

    def likeness(key: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, name, key).ratio()
        return whole + difflib.SequenceMatcher(None, last, key.rpartition(".")[2]).ratio(), whole

    return max(same_last or keys, key=likeness)


def _known_keys(annotation: Any, prefix: Key, above: tuple[type, ...]) -> Iterator[Key]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        if annotation in above:
            return  # a config class that holds itself: its keys are listed once
        for name, field in annotation.model_fields.items():
            yield (*prefix, name)
            yield from _known_keys(field.annotation, (*prefix, name), (*above, annotation))
    elif get_origin(annotation) in (Union, types.UnionType):
        for choice in get_args(annotation):
            yield from _known_keys(choice, prefix, above)


def _key_of(error: ErrorDetails, settings: dict[str, Any]) -> Key:
    """Where an error is, as a person would write it: without pydantic's names for union members."""
    key: list[str] = []
    at: Any = settings
    for position, part in enumerate(error["loc"]):
        is_last = position == len(error["loc"]) - 1
        steps = dict(enumerate(at)) if isinstance(at, list) else at if isinstance(at, dict) else {}
        if part in steps:
            at = steps[part]
        elif not (is_last and error["type"] == "missing"):
            continue
        key.append(str(part))
    return tuple(key)


def _origin_of(key: Key, origins: dict[Key, str]) -> str:
    """Who gave this setting, or a part of it, or the table it is in."""
    matching = [o for k, o in origins.items() if k[: len(key)] == key or key[: len(k)] == k]
    return matching[-1] if matching else ""


def _parse_set(text: str) -> tuple[Key, Any, str]:
    """(key, value, value as typed) of `a.b=c`."""
    name, equals, raw_value = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise ConfigError(
            f"`--set {text}` is not of the form name=value", "write e.g. --set data.files='*.md'"
        )
    try:
        parsed = tomllib.loads(f"value = {raw_value}")
    except tomllib.TOMLDecodeError:
        return key, raw_value, raw_value
    # More than the one key: the text was no TOML value but several lines of TOML.
    return key, parsed["value"] if len(parsed) == 1 else raw_value, raw_value


def _nested(key: Key, value: Any) -> dict[str, Any]:
    for part in reversed(key):
        value = {part: value}
    return dict(value)


def _lay_over(settings: dict[str, Any], overlay: dict[str, Any]) -> None:
    for name, value in overlay.items():
        below = settings[name] if name in settings else None
        if isinstance(value, dict) and isinstance(below, dict):
            _lay_over(below, value)
        else:
            settings[name] = _plain(value)


def _leaves(table: dict[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _plain(value: Any) -> Any:
    """The same in what JSON and TOML share; a None in a table is left out, for absent means None."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)  # dates and times, in the form that TOML and JSON read


def _write_table(key: Key, table: dict[str, Any], lines: list[str]) -> None:
    tables = {name: value for name, value in table.items() if isinstance(value, dict)}
    if key and (len(tables) < len(table) or not table):
        lines += ["", f"[{'.'.join(_toml_key(part) for part in key)}]"]
    lines += [f"{_toml_key(name)} = {_toml_value(table[name])}" for name in table if name not in tables]
    for name, value in tables.items():
        _write_table((*key, name), value, lines)


def _toml_key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _toml_value(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(name)} = {_toml_value(value[name])}" for name in value) + "}"
    raise ConfigError(f"{value!r} cannot be written as a setting", "leave it out of lists and tables")


def _type_name(value: Any) -> str:
    names = {bool: "true or false", int: "integer", float: "number", str: "text", list: "list", dict: "table"}
    return names[type(value)] if type(value) in names else type(value).__name__
