"""The reference page of the command line, in Markdown, made from the options as they are declared.

python -m harness.reference > docs/reproduce/command-line.md
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from .options import Option
from .tables import Table, get_table, table_names

_INTRODUCTION = """\
# Command line

`python reproduce.py --table NAME [options]` makes one table. The key of an option in a study file \
is its name without the dashes, and what has several values is a list there.

This page is made from the code by `python -m harness.reference`. \
`python reproduce.py --table NAME --help` prints the options of one table."""


def page() -> str:
    """The whole page: every table, then every option with what it may be, heading by heading."""
    tables = [get_table(name) for name in table_names()]
    parts = [_INTRODUCTION, "## Tables", _tables(tables)]
    groups = dict.fromkeys(option.group for table in tables for option in table.options())
    for group in groups:
        having = [t for t in tables if any(option.group == group for option in t.options())]
        named = "all tables" if len(having) == len(tables) else _listed(t.name for t in having)
        parts += [f"## Options: {group}", f"Of {named}.", _options(having, group)]
    return "\n\n".join(parts) + "\n"


def _tables(tables: Iterable[Table]) -> str:
    lines = ["| table | what it shows |", "|:--|:--|"]
    for table in tables:
        module = importlib.import_module(f"harness.tables.{table.name.replace('-', '_')}")
        lines.append(f"| `{table.name}` | {_cell((module.__doc__ or '').partition(chr(10))[0])} |")
    return "\n".join(lines)


def _options(tables: list[Table], group: str) -> str:
    """One line for an option, or one for each of the forms that it has in different tables."""
    forms: dict[tuple[str, str, str], list[str]] = {}
    for table in tables:
        for option in table.options():
            if option.group == group:
                form = (_flag(option), _cell(option.meaning), _cell(option.without))
                forms.setdefault(form, []).append(table.name)
    several = {flag for flag, *_ in forms if len([f for f in forms if f[0] == flag]) > 1}
    lines = ["| option | meaning | default |", "|:--|:--|:--|"]
    # Python's sort is stable: the forms of an option stand where its first one does.
    order = list(dict.fromkeys(flag for flag, *_ in forms))
    for form in sorted(forms, key=lambda form: order.index(form[0])):
        flag, meaning, default = form
        partly = flag in several or len(forms[form]) < len(tables)
        where = f" ({_listed(forms[form])})" if partly else ""
        lines.append(f"| {flag} | {meaning}{where} | {default} |")
    return "\n".join(lines)


def _flag(option: Option) -> str:
    if option.is_flag:
        both = f", `--no-{option.key}`" if option.of_preset else ""
        return f"`{option.flag}`{both}"
    return f"`{option.flag} {option.metavar or option.name.upper()}`".replace("|", r"\|")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page(), end="")
