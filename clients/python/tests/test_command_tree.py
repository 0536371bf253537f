"""What holds for every command."""

from collections.abc import Iterator

import click
import pytest

from khomas.cli.main import khomas

# What prints nothing structured, and why.
WITHOUT_JSON = {
    "logs": "prints what the job printed",
    "export": "prints a job file",
    "events": "prints one JSON object a line anyway",
    "auth explain": "hands over to the kit, which prints JSON anyway",
    "up": "runs until it is stopped",
    "completion": "prints a script for a shell",
}


def tree(group: click.Group, place: str = "") -> Iterator[tuple[str, click.Command]]:
    """Go through all commands below a group, also through groups that are commands themselves."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{place}{name}", command
        if isinstance(command, click.Group):
            yield from tree(command, f"{place}{name} ")


def options(command: click.Command) -> dict[str, click.Parameter]:
    return {word: option for option in command.params for word in option.opts}


def test_every_command_answers_in_json_but_for_those_that_have_a_reason() -> None:
    assert {name for name, command in tree(khomas) if "--json" not in options(command)} == set(WITHOUT_JSON)


def test_every_command_that_answers_in_json_does_so_where_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KHOMAS_OUTPUT", "json")
    deaf = [
        name
        for name, command in tree(khomas)
        if "--json" in options(command) and not options(command)["--json"].process_value(click.Context(command), False)
    ]
    assert deaf == []


def test_every_command_that_can_wait_can_give_up_waiting() -> None:
    found = {name: options(command) for name, command in tree(khomas)}
    assert [name for name, known in found.items() if "--wait" in known and "--timeout" not in known] == []
    assert {name for name, known in found.items() if "--wait" in known} >= {
        "submit", "cancel", "retry", "backends drain", "cp", "transfer create", "recall create", "rule create",
        "rule update", "se drain", "se decommission", "incident apply", "prod create", "prod resume", "prod cancel",
    }  # fmt: skip


def test_every_command_says_what_it_does() -> None:
    assert [name for name, command in tree(khomas) if not command.get_short_help_str()] == []
