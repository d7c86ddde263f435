"""Command-line options made from a configuration's dataclasses: names, types, help and defaults are written nowhere else."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from ..errors import ArgumentError
from .configuration import Option

MARK = "config__"  # begins the parameters that stand for options of the configuration


def with_options(
    command: Callable[..., None], options: Sequence[Option], kinds: Mapping[str, Any], tables: Mapping[str, str]
) -> Callable[..., None]:
    """A typer command with an option for each option of a configuration, all of them optional.

    Args:
        command: takes its own parameters and `changes`, the options that were given, by name.
        options: of `options_of`; those of several kinds with one name become one option.
        kinds: section names that a command chooses by name, with what may be chosen, the default first ({"method": METHODS}).
        tables: further text for the help of an option, such as its defaults for single data sets.
    Returns: a function for `typer.Typer.command`.
    Raises: ArgumentError (when called) for a list of numbers that is none. Whether an option fits the chosen kind, `changed` says.
    Cost: O(options).
    """
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "changes"]
    by_name: dict[str, list[Option]] = {}
    for o in options:
        by_name.setdefault(o.name, []).append(o)
    hints = typing.get_type_hints(command, include_extras=True)
    made = [p.replace(annotation=hints[p.name]) for p in own]
    for name, choices in kinds.items():
        text = with_default(f"Which {name}: {', '.join(choices)}.", next(iter(choices)))
        made.append(_parameter(name, str, f"--{name.replace('_', '-')}", text, None))
    plain = {name: _plain(same[0].hint) for name, same in by_name.items()}
    for name, same in by_name.items():
        kind = str if typing.get_origin(plain[name]) in (Literal, tuple) else plain[name]
        made.append(_parameter(name, kind, same[0].flag, _help(same, tables.get(name, "")), _panel(same)))

    def run(**given: Any) -> None:
        changes = {key.removeprefix(MARK): given.pop(key) for key in list(given) if key.startswith(MARK)}
        changes = {name: _value(name, plain.get(name), v) for name, v in changes.items() if v is not None}
        command(**given, changes=changes)

    run.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in made}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def check_resume(command: str, given: Iterable[str], allowed: Mapping[str, str], others: Sequence[str] = ()) -> None:
    """Raise ArgumentError where a resumed run is given what it keeps.

    Args: command: its name; given: options by name; allowed: those that may change, and their flags; others: what else was given.
    Cost: O(options).
    """
    if refused := sorted({*given} - allowed.keys()) + [*others]:
        raise ArgumentError(
            f"{command}: --resume came with {', '.join(refused)}, expected none but {', '.join(allowed.values())} because a resumed "
            "run keeps its settings; leave them out, or start a new run"
        )


def _parameter(name: str, kind: Any, flag: str, text: str, panel: str | None) -> inspect.Parameter:
    names = (flag, f"--no-{flag[2:]}") if kind is bool else (flag,)
    declared = typer.Option(" / ".join(names) if kind is bool else flag, help=text, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(MARK + name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, declared])


def _plain(hint: Any) -> Any:
    """The annotation of an option's value where it is not None."""
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return next(a for a in typing.get_args(hint) if a is not type(None)) if optional else hint


def _value(name: str, hint: Any, given: Any) -> Any:
    """The option's value, of what the command line has read: text for a tuple of numbers."""
    if typing.get_origin(hint) is not tuple:
        return given
    try:
        return tuple(typing.get_args(hint)[0](part) for part in given.split(","))
    except ValueError as error:
        raise ArgumentError(f"config: {name} is {given!r}, expected numbers with commas between them; pass for instance 1,2,4") from error


def _help(same: Sequence[Option], table: str) -> str:
    kinds: dict[str, list[str]] = {}  # that share a text
    for o in same:
        kinds.setdefault(_text(o), []).append(str(o.kind))
    text = next(iter(kinds)) if len(kinds) == 1 else " ".join(f"{', '.join(names)}: {each}" for each, names in kinds.items())
    defaults = {str(o.kind): _shown(o) for o in same}
    if len(set(defaults.values())) == 1:
        shown = next(iter(defaults.values()))
    else:
        shown = ", ".join(f"{kind} {value}" for kind, value in defaults.items() if value)
    default = "; ".join(part for part in (shown, table) if part)
    return with_default(text, default) if default else text


def _text(o: Option) -> str:
    choices = typing.get_args(o.hint) if typing.get_origin(o.hint) is Literal else o.field.metadata["choices"]
    return str(o.field.metadata["help"]) + (f" One of {', '.join(choices)}." if choices else "")


def with_default(text: str, default: str) -> str:
    """Help that names a default, so that the brackets are shown and not taken for markup. Cost: O(1)."""
    return text + escape(f" [default: {default}]")


def _shown(o: Option) -> str:
    value = o.field.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return o.flag[2:] if value else f"no-{o.flag[2:]}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _panel(same: Sequence[Option]) -> str:
    kinds = [o.kind for o in same if o.kind is not None]
    return f"Options of {', '.join(kinds)}" if kinds else f"Options of the {same[0].path[0]}" if len(same[0].path) > 1 else "Options"
