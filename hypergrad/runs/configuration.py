"""Configurations: nested frozen dataclasses that alone decide JSON, ranges, the options of a command and their help.

    @dataclass(frozen=True)
    class Data(Section):
        data: str = option("glyphs", "Data set.", choices=("glyphs", "omniglot"))

A field is an option (`option`) or a section, another such dataclass. A section with `kinds` (`section`) is one of several
dataclasses, chosen by name: the options of a method, say. Names of options are unique within a configuration, and none is "name".
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..errors import ArgumentError, RunError

C = TypeVar("C", bound="Section")
MOST = 10**6  # of a whole number, where an option says nothing else


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Mapping[str, Any] | tuple[str, ...] | None = None,
    on_resume: bool = False,
) -> Any:
    """A field of a `Section` that a user can set.

    Args:
        default: its value where nothing else is said; an old run that lacks the field gets it, too.
        help: one sentence for the command's help.
        low, above, high: the value is at least `low`, larger than `above` (and finite), at most `high`; a whole number has at most a
            million where nothing else is said.
        choices: the values allowed, where the annotation is no Literal.
        on_resume: whether a resumed run may change it.
    Returns: a dataclass field. Cost: O(1).
    """
    return dataclasses.field(
        default=default, metadata=dict(help=help, low=low, above=above, high=high, choices=choices, on_resume=on_resume)
    )


def section(default: Any, kinds: Mapping[str, type] | None = None) -> Any:
    """A field of a `Section` that is a section itself.

    Args:
        default: the section's dataclass, of which an instance with its defaults is made.
        kinds: the dataclasses that may stand here, by the names that choose them.
    Returns: a dataclass field. Cost: O(1).
    """
    return dataclasses.field(default_factory=default, metadata={"kinds": kinds})


def _is_option(field: dataclasses.Field[Any]) -> bool:
    """Whether a field was made by `option`."""
    return "on_resume" in field.metadata


@dataclass(frozen=True)
class Section:
    """A part of a configuration. Raises: ArgumentError for a value of a wrong type or out of its range."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if _is_option(field):
                _check(field, hints[field.name], getattr(self, field.name))


def _check(field: dataclasses.Field[Any], hint: Any, value: Any) -> None:
    data, choices = field.metadata, field.metadata["choices"]
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
    optional = value is None and fits(None, hint)
    if choices is not None and value not in tuple(choices) and not optional:
        raise ArgumentError(f"config: {field.name} is {value!r}, expected one of {', '.join(choices)}; pass one of these")
    if not fits(value, hint):
        kind = getattr(hint, "__name__", hint)
        raise ArgumentError(f"config: {field.name} is {value!r}, expected {kind}; pass for instance {field.default!r}")
    members = () if value is None else value if isinstance(value, tuple) else (value,)
    if data["low"] is not None and not all(v >= data["low"] for v in members):
        raise ArgumentError(f"config: {field.name} is {value}, expected at least {data['low']}; pass a larger number")
    high = data["high"] if data["high"] is not None else MOST
    if any(isinstance(v, int) and v > high for v in members):
        raise ArgumentError(f"config: {field.name} is {value}, expected at most {high}; pass a smaller number")
    if data["above"] is not None and not all(data["above"] < v < float("inf") for v in members):
        raise ArgumentError(
            f"config: {field.name} is {value}, expected a finite number > {data['above']}; pass for instance {field.default}"
        )


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type; a whole number may stand for a float, no bool for a number. Cost: O(1)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and len(value) > 0 and all(fits(item, args[0]) for item in value)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, arg) for arg in args)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


@dataclass(frozen=True)
class Option:
    """One option of a configuration.

    Args:
        path: names of the sections down to the field, ("training", "iterations").
        kind: where the section is one of several, the name that chooses it; else None.
        field: the dataclass field; hint: its annotation.
    """

    path: tuple[str, ...]
    kind: str | None
    field: dataclasses.Field[Any]
    hint: Any

    @property
    def name(self) -> str:
        """The field's name."""
        return self.path[-1]

    @property
    def flag(self) -> str:
        """The option on the command line, "--n-way"."""
        return "--" + self.name.replace("_", "-")


def options_of(cls: type, path: tuple[str, ...] = (), kind: str | None = None) -> Iterator[Option]:
    """All options of a configuration class, those of every kind of its sections included. Cost: O(options)."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        here, kinds = (*path, field.name), field.metadata.get("kinds")
        if kinds is not None:
            for name, each in kinds.items():
                yield from options_of(each, here, name)
        elif _is_option(field):
            yield Option(here, kind, field, hints[field.name])
        elif dataclasses.is_dataclass(hints[field.name]):
            yield from options_of(hints[field.name], here, kind)


def changed(config: C, values: Mapping[str, Any]) -> C:
    """A configuration with some options set.

    Args: config: to start from; values: by the options' names, or {section: name} to choose the kind of a section (with its defaults).
    Returns: a new one. Raises: ArgumentError for an unknown name or a value out of its range. Cost: O(options).
    """
    left, known = dict(values), list[str]()
    result = _changed(config, left, known)
    if left:
        raise ArgumentError(
            f"config: unknown options {', '.join(sorted(left))}, expected some of {', '.join(sorted(known))}; correct the names"
        )
    return typing.cast(C, result)


def _changed(config: Any, left: dict[str, Any], known: list[str]) -> Any:
    """Moves values from `left` into the configuration, and all names that it has into `known`."""
    new: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        kinds, own = field.metadata.get("kinds"), getattr(config, field.name)
        if kinds is not None or _is_option(field):
            known.append(field.name)
        if kinds is not None and field.name in left:
            name = left.pop(field.name)
            if name not in tuple(kinds):  # a tuple compares what cannot be hashed, too
                raise ArgumentError(f"config: {field.name} is {name!r}, expected one of {', '.join(kinds)}; pass one of these")
            own = kinds[name]() if kinds[name] is not type(own) else own
        if dataclasses.is_dataclass(own):
            new[field.name] = _changed(own, left, known)
        elif _is_option(field) and field.name in left:
            new[field.name] = left.pop(field.name)
    return dataclasses.replace(config, **new)


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as JSON values: an object for each section, with its `name` where it is one of several. Cost: O(options)."""
    record: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, kinds = getattr(config, field.name), field.metadata.get("kinds")
        if dataclasses.is_dataclass(value):
            name = {"name": next(n for n, each in kinds.items() if each is type(value))} if kinds is not None else {}
            record[field.name] = {**name, **to_json(value)}
        elif _is_option(field):
            record[field.name] = list(value) if isinstance(value, tuple) else value
    return record


def from_json(cls: type[C], record: Mapping[str, Any], where: str) -> C:
    """The configuration that `to_json` wrote, by this version or an older one.

    Args: cls: its class; record: the parsed JSON, an object; where: the file's name, for messages.
    Returns: a configuration; what the record lacks has its default.
    Raises: RunError for an unknown option or kind, and for a value of a wrong type or out of its range.
    Cost: O(options).
    """
    try:
        return changed(cls(), _flat(record))
    except ArgumentError as error:
        raise RunError(
            f"config: {where} is not valid ({error}); restore the file or, where a newer version or a method of your own wrote it, update "
            "hypergrad or install what provides it"
        ) from error


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options of all sections by name, and by a section's own name the kind of it."""
    values: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            values |= {key: value["name"]} if "name" in value else {}
            values |= _flat({name: each for name, each in value.items() if name != "name"})
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    return values
