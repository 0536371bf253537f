"""The `khomas` command: a table of commands, each imported when it is called."""

import difflib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

# Command to module and one line of help. Help must not import: it is what people type most.
COMMANDS = {
    "submit": ("jobs", "Submit a job, an array, or a job file."),
    "ls": ("jobs", "List jobs."),
    "show": ("jobs", "Show a job with its attempts."),
    "logs": ("jobs", "Print what a job printed; -f follows."),
    "wait": ("jobs", "Wait for jobs to end."),
    "why": ("explanations", "Say why anything waits or failed, and what helps."),
    "job": ("job", "Look into a job: the commands and calls that its batch system got."),
    "cancel": ("job_changes", "Cancel jobs."),
    "hold": ("job_changes", "Keep waiting jobs from starting."),
    "release-job": ("job_changes", "Let held jobs go on."),
    "retry": ("job_changes", "Submit failed jobs again."),
    "diff": ("job_changes", "Compare two jobs."),
    "slow": ("policies", "List jobs that get on too slowly, and why."),
    "shares": ("policies", "List the accounts that jobs are charged to."),
    "export": ("job_changes", "Print a job as a job file."),
    "explain": ("job_changes", "Say what a reason means."),
    "backends": ("backends", "List the batch systems with rank and why; ban, drain, unban."),
    "credentials": ("credentials", "List the credentials towards batch systems."),
    "put": ("files", "Bring files in."),
    "get": ("files", "Fetch files, or the outputs of a job."),
    "grant": ("files", "Print addresses by which files can be read for a while."),
    "cp": ("copying", "Copy between this machine, the catalogue and StorageElements."),
    "sync": ("copying", "Bring over what a folder or a directory of the catalogue is missing."),
    "find": ("files", "Search files by path and metadata."),
    "dir": ("files", "List a directory."),
    "rm": ("files", "Delete files; can be undone for a while."),
    "undelete": ("files", "Take deletions back."),
    "meta": ("metadata", "Declare metadata keys and set values."),
    "dataset": ("metadata", "Make, fill, close and list datasets."),
    "adopt": ("adoption", "Take an existing tree into the catalogue, where it lies."),
    "se": ("adoption", "List, make and look after StorageElements: ls, matrix, check, care."),
    "incident": ("integrity", "Files that are lost, damaged or unknown: ls, show, apply."),
    "rule": ("rules", "Want copies of datasets and directories; what protects them."),
    "policy": ("rules", "Give new datasets rules by themselves."),
    "transfer": ("transfers", "Copy files between StorageElements."),
    "link": ("transfers", "See and bound what moves between StorageElements."),
    "recall": ("recalls", "Bring files from tape to disk."),
    "prod": ("productions", "Create, watch and steer productions."),
    "run": ("records", "Observation runs and their quality."),
    "trace": ("records", "Say where anything came from."),
    "release": ("releases", "Make, publish and export releases."),
    "events": ("system", "Watch the events of a service."),
    "auth": ("system", "Say what a token allows."),
    "up": ("system", "Run every installed service in one process."),
    "completion": ("system", "Print the completion script of a shell."),
}


class LazyGroup(click.Group):
    """Imports a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"khomas.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Suggest the nearest command for one that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 3)
            hint = f" Did you mean {', '.join(near)}?" if near else " `khomas --help` lists them."
            raise click.UsageError(f"There is no command {args[0]}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--endpoint", metavar="HOST:PORT", help="Where the services are (KHOMAS_ENDPOINT).")
@click.version_option(package_name="khomas-client")
def khomas(endpoint: str | None) -> None:
    """From a raw run on a disk to a published product."""
    if endpoint:
        os.environ["KHOMAS_ENDPOINT"] = endpoint


def main() -> None:
    """Run the command line and leave with one of the documented exit codes."""
    _open_streams()
    try:
        code = khomas.main(prog_name="khomas", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # A full disk behind the output, for one.
        click.echo(str(error), err=True)
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)


def _open_streams() -> None:
    """Stand in for streams that whoever started us has closed, and write what their encoding lacks as \\u1234."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115  until the end
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
