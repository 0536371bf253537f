"""Commands that messages, remedies and pages name are commands that there are."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from khomas.cli.main import khomas

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [*ROOT.glob("services/*/src/**/*.py"), *ROOT.glob("clients/python/src/**/*.py"), *ROOT.glob("docs/**/*.md")]
# In remedies, and as messages and pages write them; indented ones stand in blocks of pages.
NAMED = re.compile(
    r"""command=f?["'](khomas [^\n]+?)["'](?:,|\)|$)|`(khomas [a-z][^`\n]*)`|^ {0,4}(khomas [a-z][^\n]*)$""",
    re.MULTILINE,
)
ARGUMENTS = re.compile(r"\s(?:\||>|&&|#|;|\\).*$")


def named() -> Iterator[tuple[str, str]]:
    """Yield each place with a command that it names."""
    for path in SOURCES:
        for found in NAMED.finditer(path.read_text(encoding="utf-8")):
            line = next(one for one in found.groups() if one)
            yield str(path.relative_to(ROOT)), ARGUMENTS.sub("", line)


def wrong(line: str) -> str | None:
    """Return what of a line the command does not know."""
    command: click.Command = khomas
    words = line.split()[1:]
    while isinstance(command, click.Group) and words and not (command is khomas and words[0].startswith("-")):
        try:
            _, inner, words = command.resolve_command(click.Context(command), words)
        except click.UsageError as error:
            return error.message
        assert inner is not None
        command = inner
    if command.context_settings.get("ignore_unknown_options"):
        return None
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word == "--":
            break
        option = word.partition("=")[0].strip("[],.)")
        if re.fullmatch(r"--[a-z][a-z-]*|-[a-z]", option) and option not in known | {"--help", "-h"}:
            return option
    return None


@pytest.mark.parametrize(("place", "line"), sorted(set(named())), ids=lambda text: text)
def test_named_command_is_there(place: str, line: str) -> None:
    assert wrong(line) is None
