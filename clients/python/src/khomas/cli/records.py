"""Commands about observation runs, and about where things came from."""

from typing import TYPE_CHECKING, Any

import click

from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import with_client

if TYPE_CHECKING:
    pass


@click.group()
def run() -> None:
    """Observation runs and their quality."""


def _run_row(one: Any) -> dict[str, Any]:
    from khomas.api.bookkeeping.v1.run_pb2 import Run

    return {
        "id": one.name.removeprefix("runs/"),
        "target": one.target,
        "period": one.period,
        "quality": Run.Quality.Name(one.quality).removeprefix("QUALITY_"),
        "start": one.start_time.ToJsonString() if one.HasField("start_time") else "",
        "comment": one.comment,
        "files": list(one.files),
    }


@run.command("ls")
@click.option("--filter", "filter_text", default="", help='AIP-160: target = "Crab*" AND quality = GOOD.')
@listing
def run_ls(filter_text: str, **options: Any) -> None:
    """List runs."""
    form = format_of(options)
    found = with_client(lambda client: client.bookkeeping.runs(filter_text))
    show_rows([_run_row(one) for one in found], form, ("id", "target", "period", "quality", "start", "comment"))


@run.command("show")
@click.argument("name")
@in_json
def run_show(name: str, as_json: bool) -> None:
    """Show a run with the history of its quality."""
    found = with_client(lambda client: client.bookkeeping.run(name))
    show_one(as_dict(found) if as_json else _run_row(found), as_json)
    for change in [] if as_json else found.history:
        talk(f"{change.time.ToJsonString()} {change.author}: {change.quality} {change.comment}")


@run.command("create")
@click.argument("name")
@click.option("--target", default="")
@click.option("--period", default="")
@click.option("--file", "files", multiple=True, help="LFN of a file of the run.")
@in_json
def run_create(name: str, target: str, period: str, files: tuple[str, ...], as_json: bool) -> None:
    """Make a run known."""
    from khomas.api.bookkeeping.v1.run_pb2 import Run

    wanted = Run(name=f"runs/{name}", target=target, period=period, files=files)
    for made in with_client(lambda client: client.bookkeeping.create_runs([wanted])):
        say(_run_row(made), made.name.removeprefix("runs/"), as_json)


@run.command("flag")
@click.argument("name")
@click.argument("quality", type=click.Choice(["good", "limited", "bad"]))
@click.option("--comment", required=True, help="Why.")
@in_json
def run_flag(name: str, quality: str, comment: str, as_json: bool) -> None:
    """Decide about the quality of a run; the history keeps who and why."""
    found = with_client(lambda client: client.bookkeeping.flag_run(name, quality, comment))
    show_one(_run_row(found), as_json)


# Relations of a part to its whole: of copies, attempts, jobs, items and files.
_PARTS = ("copy of", "attempt of", "made for", "part of", "wanted by")


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--forward", is_flag=True, help="What came of it, instead of where it came from.")
@click.option("--depth", type=int, default=0, help="Steps from file to file; default all.")
@in_json
def trace(id_: str, forward: bool, depth: int, as_json: bool) -> None:
    """Say where anything came from: an LFN, a uid, a native id, or any name that another command prints."""
    found = with_client(lambda client: client.bookkeeping.trace(id_, forward=forward, max_depth=depth))
    if as_json:
        show_one(as_dict(found), as_json=True)
        return
    nodes = {node.name: node for node in found.nodes}
    following: dict[str, list[tuple[str, str]]] = {}
    for edge in found.edges:
        # Python keyword, hence getattr.
        start, end = (edge.to, getattr(edge, "from")) if forward else (getattr(edge, "from"), edge.to)
        following.setdefault(start, []).append((edge.relation, end))
    if not forward:
        _with_parts(following, found)
    _tree(nodes, following, found.subject, "", set())
    for name in found.cut_short:
        talk(f"{name} has more files than are followed here; ask for one of them")


def _with_parts(following: dict[str, list[tuple[str, str]]], found: Any) -> None:
    """Let what was asked for lead to its parts, and these to theirs, instead of the other way round."""
    parts_of: dict[str, list[tuple[str, str]]] = {}
    for edge in found.edges:
        if edge.relation in _PARTS:
            parts_of.setdefault(edge.to, []).append((edge.relation, getattr(edge, "from")))
    wholes = [found.subject]
    for whole in wholes:
        for relation, part in parts_of.pop(whole, ()):
            following[part].remove((relation, whole))
            following.setdefault(whole, []).append((relation, part))
            wholes.append(part)


def _tree(
    nodes: dict[str, Any], following: dict[str, list[tuple[str, str]]], name: str, indent: str, seen: set[str]
) -> None:
    node = nodes.get(name)
    summary = f"{node.kind}  {node.summary}" if node is not None else ""
    click.echo(f"{name}  {summary}".rstrip())
    if name in seen:
        return
    seen.add(name)
    after = following.get(name, [])
    for at, (relation, end) in enumerate(after):
        last = at == len(after) - 1
        again = " (above)" if end in seen else ""
        click.echo(f"{indent}{'└' if last else '├'}─ {relation}: ", nl=False)
        if again:
            click.echo(f"{end}{again}")
        else:
            _tree(nodes, following, end, indent + ("   " if last else "│  "), seen)
