"""Options of the command line and of study files: each is declared once, as a field of a dataclass.

    @dataclass(frozen=True)
    class Request(Options):
        limit_train: int | None = option(None, "training rows per task", Whole(1), absent="all")

Everything else is made from the field: the command line's ``--limit-train N`` and its line in
``--help`` (`add_arguments`), the key ``limit-train`` of a study file (`read_mapping`), the check of
the value (`Options.make`), its place in the command that a stored table names (`command`) and its
line in the reference page (`harness.reference`).
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

from tasks.names import choose

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Kind:
    """The values that an option takes. This class stands for text; a subclass is needed for others.

    Attributes:
        metavar: placeholder for the value in ``--help``; None for the option's own name.
    """

    metavar: str | None = None

    def read(self, text: str) -> Any:
        """The value that a word of the command line stands for.

        Raises:
            ValueError: The word stands for none.
        """
        return text

    def write(self, value: Any) -> str:
        """The word of the command line that stands for a value."""
        return str(value)

    def check(self, option: Option, value: Any) -> Any:
        """The value as it is kept.

        Raises:
            ValueError: The value is not allowed; the message names the option and what is allowed.
        """
        return choose(option.noun, value, option.known) if option.known else value


class Flag(Kind):
    """True if the option is given."""


@dataclass(frozen=True)
class File(Kind):
    """A path. A stored table does not repeat it, because it is a path of one machine."""

    metavar: str = "FILE"

    def read(self, text: str) -> Path:
        return Path(text)

    def write(self, value: Path) -> str:
        return self.metavar


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number.

    Attributes:
        least: smallest number allowed; None where the class of the option checks it.
    """

    metavar: str = "N"
    least: int | None = 1

    def read(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"invalid int value: {text!r}") from None

    def check(self, option: Option, value: int) -> int:
        if self.least is not None and value < self.least:
            expected = f"at least {self.least}" if self.least else "0 or more"
            raise ValueError(f"{option.key} is {value}: expected {expected}")
        return value


@dataclass(frozen=True)
class Names(Kind):
    """Comma-separated names, kept in the order of the known ones and each once.

    Attributes:
        repeated: whether the option may be given several times, each adding to the others.
    """

    repeated: bool = False

    def read(self, text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    def write(self, value: Sequence[str]) -> str:
        return ",".join(value)

    def check(self, option: Option, value: Sequence[str]) -> tuple[str, ...]:
        # Some names are known only when the preset is: what is left to check is done then.
        known = option.known or tuple(value)
        wanted = {choose(option.noun, name, known) for name in value}
        if not wanted:
            raise ValueError(f"no {option.noun} given; known: {', '.join(known)}")
        return tuple(name for name in known if name in wanted)


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        help: what the option is for, as a phrase.
        kind: the values that it takes.
        known: the names it may hold; empty where any are allowed or only the preset knows them.
        absent: what is taken if the option is not given, in words, where the default does not say.
        of_preset: whether the preset has the default, as an attribute of the same name.
        in_command: whether the command that a stored table names states the option: "always", if it
            is "changed" from its default, or "never" because it does not change what is measured.
        flag: name on the command line, for example "--limit-train".
        name: name of the field.
        default: value if the option is not given and the preset does not have it. None stands for
            no value, and for all known names where the kind is `Names`.
        group: heading of the options that it stands among.
    """

    help: str
    kind: Kind
    known: tuple[str, ...]
    absent: str
    of_preset: bool
    in_command: Literal["always", "changed", "never"]
    flag: str = ""
    name: str = ""
    default: Any = None
    group: str = ""

    @property
    def key(self) -> str:
        """Name in study files and messages, for example "limit-train"."""
        return self.flag.removeprefix("--")

    @property
    def noun(self) -> str:
        """What one of its values is called in messages: "task" for ``--tasks``."""
        return self.key.removesuffix("s")

    @property
    def meaning(self) -> str:
        """What the option is for, and the names it may hold."""
        return f"{self.help}: {', '.join(self.known)}" if self.known else self.help

    @property
    def without(self) -> str:
        """What is taken if the option is not given, in words; "" where that needs no words."""
        if self.absent:
            return self.absent
        if self.of_preset:
            return "the preset's"
        if isinstance(self.kind, Names) and self.default is None:
            return "all"
        if self.default in (None, False, ()):
            return ""
        return str(self.default) if isinstance(self.kind, File) else self.kind.write(self.default)

    def check(self, value: Any) -> Any:
        """The value as it is kept.

        Raises:
            ValueError: The value is not allowed.
        """
        return self.kind.check(self, value)


def option(
    default: Any,
    help: str,
    kind: Kind | None = None,
    *,
    known: Iterable[str] = (),
    absent: str = "",
    of_preset: bool = False,
    in_command: Literal["always", "changed", "never"] = "changed",
    flag: str = "",
) -> Any:
    """A dataclass field that is an option; for the arguments, see `Option`.

    Without a kind it is a flag if the default is False, and text otherwise.
    """
    if kind is None:
        kind = Flag() if default is False else Kind()
    made = Option(help, kind, tuple(known), absent, of_preset, in_command, flag)
    return field(default=default, metadata={"option": made})


Made = TypeVar("Made", bound="Options")


@dataclass(frozen=True)
class Options:
    """Base of the dataclasses whose fields are options. Fields made without `option` are none.

    Attributes:
        GROUP: heading of its options.
    """

    GROUP: ClassVar[str]

    @classmethod
    def make(
        cls: type[Made],
        given: Mapping[str, Any],
        preset: object = None,
        known: Mapping[str, Sequence[str]] = _NOTHING,
    ) -> Made:
        """The options with the given values, checked, and the defaults of all others.

        Args:
            given: name of a field -> value. None counts as not given. Fields of other classes are
                passed over, because one command line has the options of several.
            preset: the object that has the defaults of the options declared with ``of_preset``.
            known: name of a field -> the names it may hold, where they depend on table or preset.

        Raises:
            ValueError: A name is unknown (the message suggests near ones), or a number not allowed.
        """
        values: dict[str, Any] = {}
        for each in options_of(cls, known):
            if given.get(each.name) is not None:
                value = each.check(given[each.name])
            elif each.of_preset:
                value = getattr(preset, each.name)
                if isinstance(each.kind, Names):
                    value = tuple(name for name in value if name in each.known)
            elif isinstance(each.kind, Names) and each.default is None:
                value = each.known
            else:
                value = each.default
            values[each.name] = value
        return cls(**values)


def options_of(
    cls: type[Options], known: Mapping[str, Sequence[str]] = _NOTHING, without: Iterable[str] = ()
) -> list[Option]:
    """The options that a class declares, in its order.

    Args:
        cls: the class.
        known: name of a field -> the names it may hold, in place of the declared ones.
        without: names of fields that are left out.
    """
    left_out = set(without)
    return [
        dataclasses.replace(
            declared,
            name=each.name,
            default=each.default,
            flag=declared.flag or f"--{each.name.replace('_', '-')}",
            group=cls.GROUP,
            known=tuple(known.get(each.name, declared.known)),
        )
        for each in dataclasses.fields(cls)
        if (declared := each.metadata.get("option")) is not None and each.name not in left_out
    ]


def add_arguments(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Have a parser take options, which are in its result under their field's names if given."""
    groups: dict[str, Any] = {}
    for each in options:
        if each.group not in groups:
            groups[each.group] = parser.add_argument_group(each.group)
        text = each.meaning + (f" (default: {each.without})" if each.without else "")
        how: dict[str, Any] = {"dest": each.name, "help": text.replace("%", "%%")}
        if isinstance(each.kind, Flag):
            # The preset may have it on, so it can be turned off.
            how["action"] = argparse.BooleanOptionalAction if each.of_preset else "store_true"
        else:
            how |= {"type": _reader(each.kind), "metavar": each.kind.metavar}
            if isinstance(each.kind, Names) and each.kind.repeated:
                how["action"] = "extend"
        groups[each.group].add_argument(each.flag, **how)


def _reader(kind: Kind) -> Any:
    def read(text: str) -> Any:
        try:
            return kind.read(text)
        except ValueError as error:
            # The exception whose message argparse repeats.
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def read_mapping(
    options: Iterable[Option], mapping: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The values that a mapping gives to options, by field name, as `Options.make` takes them.

    Args:
        options: the options that it may name, each by its `Option.key`.
        mapping: key -> value as TOML has it: text, a number, true or false, or a list of names or
            numbers for what the command line separates by commas.
        where: place of the mapping for messages, for example "studies/tiny.toml, [cells]".

    Raises:
        ValueError: A key is unknown or a value not allowed; the message begins with place and key.
    """
    by_key = {each.key: each for each in options}
    given = {}
    for key, value in mapping.items():
        try:
            each = by_key[choose("key", key, by_key)]
            given[each.name] = each.check(_from_toml(each.kind, value))
        except ValueError as error:
            raise ValueError(f"{where}, {key}: {error}") from error
    return given


def _from_toml(kind: Kind, value: Any) -> Any:
    if isinstance(kind, Flag) and isinstance(value, bool):
        return value
    words = value if isinstance(value, list) else [value]
    plain = all(
        isinstance(word, str | int | float) and not isinstance(word, bool) for word in words
    )
    if isinstance(kind, Flag) or not plain:
        expected = "true or false" if isinstance(kind, Flag) else "text, a number or a list of them"
        raise ValueError(f"{value!r}: expected {expected}")
    # As the command line has it, so that there is one way to read a value.
    return kind.read(",".join(map(str, words)))


def command(table: str, asked: Options | None = None) -> str:
    """The command line that makes a table.

    Args:
        table: name of the table.
        asked: what it is made of; None where nothing can be chosen.
    """
    words = ["python", "reproduce.py", "--table", table]
    for each in options_of(type(asked)) if asked is not None else ():
        value = getattr(asked, each.name)
        if each.in_command == "never" or value is None or value is False or value == ():
            continue
        if each.in_command == "changed" and value == each.default:
            continue
        words += [each.flag] if value is True else [each.flag, each.kind.write(value)]
    return shlex.join(words)


@dataclass(frozen=True)
class General(Options):
    """The options that every table has."""

    GROUP: ClassVar[str] = "every table"

    output: Path = option(Path("output"), "folder of records, tables and figures", File("DIR"))
    dry_run: bool = option(False, "list the cells, run nothing")
    render_only: bool = option(False, "render what is stored, run nothing")
    report: bool = option(
        False,
        "also write OUTPUT/report.html, one page of all tables and figures under OUTPUT",
    )
    fresh: bool = option(False, "run cells again that have a record")
