"""Options of the command line and of study files: each is declared once, as a field of a dataclass.

    @dataclass(frozen=True)
    class Request(Options):
        limit_train: int | None = option(None, "training rows per task", read=int, least=1)

Everything else is made from the field: the command line's ``--limit-train N`` with its help
(`add_arguments`), the key ``limit-train`` of a study file (`read_mapping`), the check of the value
(`Options.make`), its place in the command that a stored table names (`command`), and its line in
the reference page (`harness.reference`).
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

from tasks.names import choose

#: No names that depend on a table.
NO_NAMES: Mapping[str, Sequence[str]] = MappingProxyType({})


def names(text: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True)
class Option:
    """One option. It is a flag without a value if its default is False.

    Attributes:
        default: value if the option is not given and the preset does not have one. None stands for
            no value and, where names are listed, for all known ones.
        help: what the option is for, as a phrase.
        read: makes the value from a word of the command line; raises ValueError if it stands for
            none. `names` makes an option of several names, which are kept in the order of the known
            ones.
        write: makes the word from the value.
        known: the names that the option may hold; empty where any are allowed, or only the preset
            knows them.
        least: smallest number allowed.
        repeated: whether the option may be given several times, each adding to the others.
        of_preset: whether the preset has the default, as an attribute of the same name.
        absent: what is taken if the option is not given, in words, where the default does not say.
        in_command: whether the command that a stored table names states the option: "always", if it
            is "changed" from its default, or "never" because it does not change what is measured.
        metavar: placeholder for the value. A stored table's command has it in place of a path.
        flag: name on the command line, for example "--limit-train".
        name: name of the field.
        group: heading of the options that it stands among.
    """

    default: Any
    help: str
    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = _text
    known: Iterable[str] = ()
    least: int | None = None
    repeated: bool = False
    of_preset: bool = False
    absent: str = ""
    in_command: Literal["always", "changed", "never"] = "changed"
    metavar: str | None = None
    flag: str = ""
    name: str = ""
    group: str = ""

    @property
    def key(self) -> str:
        """Name in study files and messages, for example "limit-train"."""
        return self.flag.removeprefix("--")

    @property
    def is_flag(self) -> bool:
        """Whether the option has no value beside being given."""
        return self.default is False

    @property
    def meaning(self) -> str:
        """What the option is for, and the names it may hold."""
        return f"{self.help}: {', '.join(self.known)}" if self.known else self.help

    @property
    def without(self) -> str:
        """What is taken if the option is not given, in words; "" where that needs none."""
        if self.absent or self.of_preset:
            return self.absent or "the preset's"
        if self.default is None and self.read is names:
            return "all"
        return "" if self.default in (None, False, ()) else self.write(self.default)

    def check(self, value: Any) -> Any:
        """The value as it is kept.

        Raises:
            ValueError: It is not allowed; the message names the option and what is allowed.
        """
        noun = self.key.removesuffix("s")
        if self.read is names:
            # Where only the preset knows the names they are checked when it is known.
            known = tuple(self.known) or tuple(value)
            wanted = {choose(noun, name, known) for name in value}
            # Of an option that adds up, none is what was given if it was not.
            if not wanted and not self.repeated:
                raise ValueError(f"no {noun} given; known: {', '.join(known)}")
            return tuple(name for name in known if name in wanted)
        if self.least is not None and value < self.least:
            expected = f"at least {self.least}" if self.least else "0 or more"
            raise ValueError(f"{self.key} is {value}: expected {expected}")
        if self.known:
            return choose(noun, value, self.known)
        return tuple(value) if isinstance(value, list) else value


def option(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field that is an option; for the arguments, see `Option`."""
    return field(default=default, metadata={"option": Option(default, help, **about)})


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
        known: Mapping[str, Sequence[str]] = NO_NAMES,
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
                if each.read is names:
                    value = tuple(name for name in value if name in each.known)
            else:
                all_known = each.read is names and each.default is None
                value = tuple(each.known) if all_known else each.default
            values[each.name] = value
        return cls(**values)


def options_of(
    cls: type[Options], known: Mapping[str, Sequence[str]] = NO_NAMES, without: Iterable[str] = ()
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
            flag=declared.flag or f"--{each.name.replace('_', '-')}",
            group=cls.GROUP,
            known=tuple(known.get(each.name, declared.known)),
        )
        for each in dataclasses.fields(cls)
        if (declared := each.metadata.get("option")) is not None and each.name not in left_out
    ]


def add_arguments(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Have a parser take options; their values are in its result under the names of the fields."""
    groups: dict[str, Any] = {}
    for each in options:
        if each.group not in groups:
            groups[each.group] = parser.add_argument_group(each.group)
        text = each.meaning + (f" (default: {each.without})" if each.without else "")
        how: dict[str, Any] = {"dest": each.name, "help": text.replace("%", "%%")}
        if each.is_flag:
            # What the preset may have turned on can be turned off.
            how["action"] = argparse.BooleanOptionalAction if each.of_preset else "store_true"
        else:
            how |= {"type": each.read, "metavar": each.metavar}
            how |= {"action": "extend"} if each.repeated else {}
        groups[each.group].add_argument(each.flag, **how)


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
            given[each.name] = each.check(_from_toml(each, value))
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{where}, {key}: {error}") from error
    return given


def _from_toml(option: Option, value: Any) -> Any:
    if option.is_flag and isinstance(value, bool):
        return value
    words = value if isinstance(value, list) else [value]
    plain = all(
        isinstance(word, str | int | float) and not isinstance(word, bool) for word in words
    )
    if option.is_flag or not plain:
        expected = "true or false" if option.is_flag else "text, a number, or a list of them"
        raise ValueError(f"{value!r}: expected {expected}")
    # As the command line has it, so that there is one way to read a value.
    return option.read(_text(words))


def command(table: str, asked: Options | None = None) -> str:
    """The command line that makes a table.

    Args:
        table: name of the table.
        asked: what it is made of; None where nothing can be chosen.
    """
    words = ["python", "reproduce.py", "--table", table]
    for each in () if asked is None else options_of(type(asked)):
        value = getattr(asked, each.name)
        default = each.in_command == "changed" and value == each.default
        if each.in_command == "never" or default or value is None or value == ():
            continue
        if isinstance(value, Path):
            words += [each.flag, each.metavar or "FILE"]
        else:
            words += [each.flag] if value is True else [each.flag, each.write(value)]
    return shlex.join(words)


@dataclass(frozen=True)
class General(Options):
    """The options that every table has."""

    GROUP: ClassVar[str] = "every table"

    output: Path = option(
        Path("output"), "folder of records, tables and figures", read=Path, metavar="DIR"
    )
    dry_run: bool = option(False, "list the cells, run nothing")
    render_only: bool = option(False, "render what is stored, run nothing")
    report: bool = option(
        False, "also write OUTPUT/report.html, one page of all tables and figures under OUTPUT"
    )
    fresh: bool = option(False, "run cells again that have a record")
