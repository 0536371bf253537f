"""Tables for people, one object a line for programs. stdout is data, stderr is talk."""

import csv
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

Row = Mapping[str, Any]
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Format:
    """How a list is printed."""

    json: bool
    csv: bool
    quiet: bool
    columns: tuple[str, ...]


def _wished(_context: click.Context, _option: click.Parameter, given: bool) -> bool:
    return given or os.environ.get("KHOMAS_OUTPUT") == "json"


def in_json(command: Command) -> Command:
    """Give a command the option --json, which KHOMAS_OUTPUT=json sets for all commands."""
    text = "One JSON object a line (KHOMAS_OUTPUT=json)."
    return click.option("--json", "as_json", is_flag=True, callback=_wished, help=text)(command)


def listing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options --json, --csv, -q and -o."""
    for option in (
        in_json,
        click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values."),
        click.option("-q", "--quiet", is_flag=True, help="Ids only."),
        click.option("-o", "--columns", default="", help="Columns, separated by commas."),
    ):
        command = option(command)
    return command


def format_of(options: dict[str, Any]) -> Format:
    """Take the options of `listing` out of a command's options."""
    columns = tuple(one.strip() for one in options.pop("columns").split(",") if one.strip())
    return Format(options.pop("as_json"), options.pop("as_csv"), options.pop("quiet"), columns)


TABLE = Format(json=False, csv=False, quiet=False, columns=())


def show(rows: Sequence[Row], form: Format, columns: Sequence[str], key: str = "id") -> None:
    """Print rows; `columns` are those of the table, `key` is what -q prints."""
    if form.columns:
        known = list(rows[0]) if rows else list(form.columns)
        for column in form.columns:
            if column not in known:
                raise click.UsageError(f"there is no column {column}; there are: {', '.join(known)}")
        columns = form.columns
    if form.quiet:
        _lines(str(row[key]) for row in rows)
    elif form.json:
        _lines(json.dumps({name: row[name] for name in (form.columns or row)}, default=str) for row in rows)
    elif form.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    else:
        _table([[_cell(row[column]) for column in columns] for row in rows], columns)


def show_one(row: Row, as_json: bool) -> None:
    """Print one object, a field a line."""
    if as_json:
        _lines([json.dumps(row, default=str)])
        return
    width = max((len(key) for key in row), default=0)
    _lines(f"{key.ljust(width)}  {_cell(value)}" for key, value in row.items() if value not in ("", None, [], {}))


def answer(row: Row, text: str, as_json: bool) -> None:
    """Print what came of a change: the object for programs, a line for people."""
    _lines([json.dumps(row, default=str) if as_json else text])


def talk(text: str) -> None:
    """Say something that is not data."""
    click.echo(text, err=True)


def as_dict(message: Any) -> dict[str, Any]:
    """Return a message as plain data with the names of the contract, numbers as numbers."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = _plain(MessageToDict(message, preserving_proto_field_name=True), message.DESCRIPTOR)
    return found


def _plain(value: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """Undo the JSON mapping's text for 64-bit numbers."""
    for key, one in value.items():
        field = descriptor.fields_by_name.get(key)
        if field is None:
            continue
        if field.message_type is not None and not field.message_type.full_name.startswith("google.protobuf."):
            many = one if isinstance(one, list) else [one]
            for inner in many:
                if isinstance(inner, dict):
                    _plain(inner, field.message_type)
        elif isinstance(one, str) and field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            value[key] = int(one)
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items())
    return str(value)


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    numeric = [
        bool(rows) and all(row[at].replace(",", "").replace(".", "").replace("-", "").isdigit() for row in rows)
        for at in range(len(columns))
    ]
    widths = [
        max(len(column), *(len(row[at]) for row in rows)) if rows else len(column) for at, column in enumerate(columns)
    ]

    def line(cells: Sequence[str]) -> str:
        fitted = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "  ".join(fitted).rstrip()

    header = line(columns)
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    _lines([header if plain else click.style(header, bold=True), *map(line, rows)])


def _lines(lines: Any) -> None:
    for one in lines:
        sys.stdout.write(one + "\n")
