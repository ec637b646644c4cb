"""Options, declared once: command line, study files, checks, commands and the reference page."""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness.cells.presets import PRESETS
from harness.cells.spec import RunOptions
from harness.command_line import parse
from harness.options import (
    General,
    Options,
    add_arguments,
    command,
    names,
    option,
    options_of,
    read_mapping,
)
from harness.reference import page
from harness.request import Request
from harness.tables import get_table, table_names


@dataclass(frozen=True)
class Toy(Options):
    GROUP: ClassVar[str] = "toys"

    colour: str = option("red", "colour of the toy", known=("red", "green"))
    wheels: int | None = option(None, "number of wheels", read=int, least=2, absent="any")
    parts: tuple[str, ...] = option(None, "parts", read=names, known=("lid", "box", "key"))
    folder: Path | None = option(None, "where it lies", read=Path, metavar="DIR")
    loud: bool = option(False, "makes a noise")
    size: int = option(0, "size", read=int, of_preset=True, in_command="always")
    secret: str = option("", "not told", in_command="never")
    counted: int = 7  # no option


class Preset:
    size = 3


def read(*words: str) -> Toy:
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    add_arguments(parser, options_of(Toy))
    return Toy.make(vars(parser.parse_args(words)), Preset())


def test_one_declaration_is_read_checked_and_written_again() -> None:
    assert read() == Toy("red", None, ("lid", "box", "key"), None, False, 3, "", 7)
    words = ["--colour", "green", "--wheels", "4", "--parts", "key,lid,key", "--folder", "/a b"]
    toy = read(*words, "--loud", "--size", "5", "--secret", "s")
    assert toy == Toy("green", 4, ("lid", "key"), Path("/a b"), True, 5, "s", 7)
    assert command("toy", toy) == (
        "python reproduce.py --table toy --colour green --wheels 4 --parts lid,key --folder DIR "
        "--loud --size 5"
    )
    assert command("toy", Toy.make({"parts": ["box"]}, Preset())) == (
        "python reproduce.py --table toy --parts box --size 3"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"colour": "gren"},
            r"^unknown colour 'gren' \(did you mean green or red\?\); known: red, green$",
        ),
        ({"wheels": 1}, r"^wheels is 1: expected at least 2$"),
        ({"parts": ["lid", "lad"]}, r"^unknown part 'lad' \(did you mean lid\?\)"),
        ({"parts": []}, r"^no part given; known: lid, box, key$"),
    ],
)
def test_what_is_not_allowed_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Toy.make(given, Preset())


def test_a_tables_own_names_take_the_place_of_the_declared_ones() -> None:
    own = {"parts": ("lid", "nail")}
    assert Toy.make({}, Preset(), own).parts == ("lid", "nail")
    with pytest.raises(ValueError, match="unknown part 'box'; known: lid, nail"):
        Toy.make({"parts": ["box"]}, Preset(), own)


@pytest.mark.parametrize("table", table_names())
def test_every_default_is_allowed_and_every_help_a_phrase(table: str) -> None:
    for each in get_table(table).options():
        assert each.help and each.help[-1] not in ". " and each.group
        if each.default not in (None, ()):
            assert each.check(each.default) == each.default
        for preset in PRESETS.values() if each.of_preset else ():
            value = getattr(preset, each.name)
            if each.name == "methods":  # those of them that the table has
                value = tuple(name for name in value if name in each.known)
            assert each.check(value) == value


TABLE = "main"
OPTIONS = get_table(TABLE).options()


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"preset": "small", "limit-train": 128}, "--preset small --limit-train 128"),
        ({"tasks": ["piqa", "arc-e"], "seeds": [2, 0]}, "--tasks piqa,arc-e --seeds 2,0"),
        ({"tasks": "piqa", "seeds": 3}, "--tasks piqa --seeds 3"),
        (
            {"data-dir": "some where", "skip-bad-rows": True},
            "--data-dir 'some where' --skip-bad-rows",
        ),
        ({"quirk": ["pad-side", "eval-dropout"]}, "--quirk eval-dropout --quirk pad-side"),
        ({"quantize": "4bit", "dtype": "bfloat16"}, "--quantize 4bit --dtype bfloat16"),
        ({"gradient-checkpointing": False}, "--no-gradient-checkpointing"),
        (
            {"shard": "3/16", "packed": 2, "auto-batch": True},
            "--shard 3/16 --packed 2 --auto-batch",
        ),
        ({"skip-bad-rows": False}, ""),
    ],
)
def test_a_mapping_means_what_the_command_line_means(mapping: dict[str, Any], words: str) -> None:
    found = read_mapping(OPTIONS, mapping, "studies/a.toml, [cells]")
    table, given = parse(["--table", TABLE, *shlex.split(words)])
    preset = PRESETS[given.get("preset", "tiny")]
    assert Request.of(found) == Request.of(given)
    assert RunOptions.make(found, preset) == RunOptions.make(given, preset)
    assert General.make(found) == General.make(given)
    arguments = {"render_only": True}
    assert vars(table.plan(found | arguments)) == vars(table.plan(given | arguments))


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"limit-trian": 3}, "limit-trian: unknown key 'limit-trian' (did you mean limit-train"),
        ({"limit_train": 3}, "limit_train: unknown key 'limit_train' (did you mean limit-train"),
        ({"limit-train": 0}, "limit-train: limit-train is 0: expected at least 1"),
        ({"limit-train": 1.5}, "limit-train: invalid literal for int() with base 10: '1.5'"),
        ({"limit-train": True}, "limit-train: True: expected text, a number, or a list"),
        ({"limit-train": [1, 2]}, "limit-train: invalid literal for int() with base 10: '1,2'"),
        ({"limit-train": {"a": 1}}, "limit-train: {'a': 1}: expected text, a number, or a list"),
        ({"seeds": [[0], [1]]}, "seeds: [[0], [1]]: expected text, a number, or a list"),
        ({"tasks": ["arc-e", "bolq"]}, "tasks: unknown task 'bolq' (did you mean boolq or obqa?)"),
        ({"tasks": []}, "tasks: no task given; known: arc-e"),
        ({"skip-bad-rows": "yes"}, "skip-bad-rows: 'yes': expected true or false"),
        ({"shard": "4/3"}, "shard: '4/3': expected I/N with I from 1 to N"),
        ({"quantize": "5bit"}, "quantize: unknown quantize '5bit'"),
        (
            {"data-dir": datetime.date(2024, 1, 1)},
            "data-dir: datetime.date(2024, 1, 1): expected text",
        ),
        ({"shape": "llama2-7b"}, "shape: unknown key 'shape'"),
    ],
)
def test_a_mistake_in_a_mapping_is_named_by_place_and_key(
    mapping: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError) as raised:
        read_mapping(OPTIONS, mapping, "studies/a.toml, [cells]")
    message = str(raised.value)
    assert message.startswith(f"studies/a.toml, [cells], {expected}")
    assert len(message.splitlines()) == 1


def test_the_reference_page_has_every_option_of_every_table() -> None:
    _, *sections = page().split("\n## ")
    tables = sections.pop(0)
    by_group = {text.partition("\n")[0].removeprefix("Options: "): text for text in sections}
    rows = {
        group: [line for line in text.splitlines() if line.startswith("| `--")]
        for group, text in by_group.items()
    }
    for table in table_names():
        assert f"\n| `{table}` | " in tables
        for each in get_table(table).options():
            forms = [r for r in rows[each.group] if re.match(rf"\| `{each.flag}[ `]", r)]
            # An option that differs between tables has a row for each form.
            forms = forms if len(forms) == 1 else [row for row in forms if f"`{table}`" in row]
            assert len(forms) == 1
            assert all(name in forms[0] for name in each.known)
            assert each.without in forms[0]
    # Three cells a row, whatever is in them.
    found = [row for group in rows.values() for row in group]
    assert {row.replace(r"\|", "").count("|") for row in found} == {4}
    assert len(found) == len(set(found))
