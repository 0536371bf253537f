"""Commands about jobs: submit, ls, show, logs, wait."""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import Ticker, limited, waiting, with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient

_COLUMNS = ("id", "name", "state", "reason", "backend", "age")


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="JOB.YAML | [--] PROGRAM [ARGUMENT]...")
@click.option("--name", help="Label.")
@click.option("--cpus", type=float, help="Cores.")
@click.option("--memory", help="Of the whole job, with a unit: 2400MB, 2.3GiB.")
@click.option("--disk", help="Local scratch, with a unit.")
@click.option("--wall", help="Longest time, with a unit: 24h.")
@click.option("--on", multiple=True, help="Backend; may be given several times.")
@click.option("--queue", help="Queue of the batch system.")
@click.option("--tag", multiple=True, metavar="KEY=VALUE", help="Tag.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable.")
@click.option(
    "--file", "files", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Local file to send along."
)
@click.option("--output", "outputs", multiple=True, metavar="GLOB[=LFN]", help="Output; without LFN kept with the job.")
@click.option("--grid", multiple=True, metavar="KEY=0,18,60|1..100", help="Axis of an array.")
@click.option("--derive", multiple=True, metavar="KEY=EXPRESSION", help="Value derived from the axes.")
@click.option("--count", type=int, help="An array of so many equal jobs.")
@click.option("--max-running", type=int, default=0, help="At most so many of an array at a time.")
@click.option("--after", multiple=True, help="Job that must succeed before.")
@click.option("--dry-run", is_flag=True, help="Say what would happen.")
@click.option("--write-script", type=click.Path(file_okay=False), help="Write runnable files here, submit nothing.")
@waiting("Wait for the end.")
@in_json
def submit(words: tuple[str, ...], **options: Any) -> int:
    """Submit a job, an array, or a job file."""
    document, folder = _document(words, options)
    how = {key: options[key] for key in ("dry_run", "write_script", "wait", "timeout", "as_json")}
    return with_client(lambda client: _submit(client, document, folder, how))


def _document(words: tuple[str, ...], options: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    from khomas.client.async_client import document_of

    folder = Path()
    if len(words) == 1 and words[0].endswith((".yaml", ".yml", ".json")):
        document, folder = read_document(Path(words[0])), Path(words[0]).parent
    else:
        document = document_of(words, {})
    for key in ("name", "cpus", "memory", "disk", "wall", "queue"):
        if options[key] is not None:
            document[key] = options[key]
    for key, flag in (("tags", "tag"), ("env", "env")):
        if options[flag]:
            document[key] = {**document.get(key, {}), **pairs(options[flag], f"--{flag}")}
    for key, flag in (("on", "on"), ("files", "files"), ("after", "after")):
        if options[flag]:
            document[key] = [*document.get(key, []), *options[flag]] if key == "files" else list(options[flag])
    if options["outputs"]:
        document["outputs"] = [*document.get("outputs", []), *map(_output, options["outputs"])]
    _split(document, options)
    return document, folder


def _split(document: dict[str, Any], options: dict[str, Any]) -> None:
    if options["grid"] and options["count"] is not None:
        raise click.UsageError("--grid and --count exclude each other; an axis can count: --grid n=1..10")
    if options["derive"] and not options["grid"]:
        raise click.UsageError("--derive computes from the axes of --grid; give these, too")
    if options["grid"]:
        derive = pairs(options["derive"], "--derive")
        document["split"] = {"grid": pairs(options["grid"], "--grid"), "derive": derive}
    if options["count"] is not None:
        document["split"] = {"count": options["count"]}
    if options["max_running"] and "split" in document:
        document["split"]["max_running"] = options["max_running"]


def read_document(path: Path) -> dict[str, Any]:
    """Read a YAML document."""
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise click.UsageError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise click.UsageError(f"{path} holds no keys and values")
    return content


def pairs(words: tuple[str, ...], option: str) -> dict[str, str]:
    """Split KEY=VALUE."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"{option} takes KEY=VALUE, not {word}")
        found[key] = value
    return found


def _output(word: str) -> dict[str, str]:
    glob, _, name = word.partition("=")
    return {"glob": glob, "name": name} if name else {"glob": glob}


async def _submit(client: "AsyncClient", document: dict[str, Any], folder: Path, how: dict[str, Any]) -> int:
    from khomas.client.jobs import spec_of

    spec, contents = spec_of(document, folder)
    if how["dry_run"] or how["write_script"]:
        answer = await client.jobs.plan([spec], contents, scripts=True)
        _show_plan(answer, how)
        return 0
    answer = await client.jobs.submit([spec], contents)
    for warning in answer.warnings:
        talk(f"note: {warning}")
    job = answer.jobs[0]
    if how["as_json"]:
        mergers = {"mergers": [merger.uid for merger in answer.mergers]} if answer.mergers else {}
        show_one({"id": job.uid, "jobs": job.counts.total or 1, **mergers}, as_json=True)
    elif job.HasField("counts"):
        click.echo(f"array {job.uid} {job.counts.total} jobs")
    else:
        where = ", ".join(spec.placement.backends) or (answer.plans[0].backend if answer.plans else "the best backend")
        queue = spec.placement.queue or "default"
        click.echo(f"job {job.uid} submitted to {where} (queue {queue}); follow with: khomas logs -f {job.uid}")
    for merger in () if how["as_json"] else answer.mergers:
        click.echo(f"merger {merger.uid}")
    return await wait_for(client, [job.name], how["timeout"], how["as_json"]) if how["wait"] else 0


def _show_plan(answer: Any, how: dict[str, Any]) -> None:
    plan = answer.plans[0]
    if how["write_script"]:
        folder = Path(how["write_script"])
        for script in plan.scripts:
            path = folder / script.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(script.content)
            path.chmod(0o755)
            say({"path": str(path)}, str(path), how["as_json"])
        return
    if how["as_json"]:
        show_one(as_dict(plan), as_json=True)
        return
    click.echo(f"backend {plan.backend}: {plan.why}")
    for line in plan.others:
        click.echo(f"  {line}")
    for one in plan.resources.estimated:
        click.echo(
            f"{one.field} {one.value:g} instead of {one.given:g}: "
            f"p{100 * one.quantile:g} of {one.sample_size} jobs of {one.profile}, and a tenth"
        )
    click.echo(f"jobs {plan.jobs}")
    for name in plan.inputs:
        click.echo(f"input {name}")
    for warning in answer.warnings:
        talk(f"note: {warning}")
    for script in plan.scripts[:1]:
        click.echo(f"--- {script.path}: {' '.join(script.command)}")
        click.echo(script.content.decode(errors="replace"))


@click.command()
@click.argument("parent", default="")
@click.option("--state", help="State, in any case.")
@click.option("--reason", help="Reason.")
@click.option("--tag", multiple=True, metavar="KEY=VALUE")
@click.option("--since", help="Made in this time: 1d.")
@click.option("--filter", "filter_text", default="", help="AIP-160 filter.")
@click.option("--limit", type=int, default=100, help="At most so many; 0 = all.")
@listing
def ls(parent: str, **options: Any) -> None:
    """List jobs, or the children of an array."""
    from khomas.client.jobs import job_name

    form = format_of(options)
    limit = options.pop("limit")
    text = _filter(options)
    found = with_client(
        lambda client: client.jobs.find(text, parent=job_name(parent) if parent else "", limit=limit, full=True)
    )
    show_rows([_row(job) for job in found], form, _COLUMNS)


def _filter(options: dict[str, Any]) -> str:
    from khomas.client.units import duration, quoted

    terms = [f"({options['filter_text']})"] if options["filter_text"] else []
    terms += [f"{key} = {options[key].upper()}" for key in ("state", "reason") if options[key]]
    terms += [f"tags.{key} = {quoted(value)}" for key, value in pairs(options["tag"], "--tag").items()]
    if options["since"]:
        start = datetime.now(UTC) - duration(options["since"], "--since")
        terms.append(f'create_time > "{start.isoformat()}"')
    return " AND ".join(terms)


def _row(job: Any) -> dict[str, Any]:
    from khomas.client.jobs import reason_of, state_of
    from khomas.client.units import show_duration

    attempt = job.attempts[-1] if job.attempts else None
    age = datetime.now(UTC) - job.create_time.ToDatetime(tzinfo=UTC)
    return {
        "id": job.uid,
        "name": job.spec.display_name or job.spec.command.executable,
        "state": state_of(job),
        "reason": reason_of(job.status),
        "backend": attempt.backend if attempt else "",
        "node": attempt.node if attempt else "",
        "attempt": job.status.attempt,
        "jobs": job.counts.total or 1,
        "counts": dict(job.counts.by_state),
        "message": job.status.message,
        "tags": dict(job.spec.tags),
        "parameters": dict(job.parameters),
        "owner": job.owner,
        "created": job.create_time.ToJsonString(),
        "ended": job.end_time.ToJsonString() if job.HasField("end_time") else "",
        "age": show_duration(age.total_seconds()),
    }


@click.command()
@click.argument("job")
@in_json
def show(job: str, as_json: bool) -> None:
    """Show a job with its attempts."""
    found = with_client(lambda client: client.jobs.get(job))
    if as_json:
        show_one(as_dict(found), as_json=True)
        return
    show_one(_row(found), as_json=False)
    for attempt in found.attempts:
        usage = attempt.usage
        click.echo(f"attempt {attempt.number}: {_attempt_line(attempt)}")
        click.echo(f"  wall {usage.wall_time.ToTimedelta()}, memory {usage.max_memory_bytes // 1_000_000} MB")
        for output in attempt.outputs:
            click.echo(f"  {output.name or output.path}  {output.size_bytes} bytes")


def _attempt_line(attempt: Any) -> str:
    from khomas.client.jobs import reason_of, state_name

    why = reason_of(attempt)
    exit_code = f", exit code {attempt.exit_code}" if attempt.HasField("exit_code") else ""
    where = f" on {attempt.backend} {attempt.node}".rstrip()
    return f"{state_name(attempt.state)}{f' ({why})' if why else ''}{where}{exit_code} {attempt.message}".rstrip()


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Until the job ends.")
@click.option("--stderr", is_flag=True, help="Standard error instead of standard output.")
@click.option("--attempt", type=int, default=0, help="Number of the attempt; default the last.")
@click.option("--tail", type=int, help="Only so many bytes from the end.")
@click.option("--grep", help="Only lines that match this regular expression.")
def logs(job: str, follow: bool, stderr: bool, attempt: int, tail: int | None, grep: str | None) -> None:
    """Print what a job printed."""
    pattern = re.compile(grep.encode()) if grep else None

    async def work(client: "AsyncClient") -> None:
        rest = b""
        stream = "stderr" if stderr else "stdout"
        parts = client.jobs.logs(job, stream=stream, follow=follow, attempt=attempt, offset=-tail if tail else 0)
        async for part in parts:
            if pattern is None:
                sys.stdout.buffer.write(part)
            else:
                *lines, rest = (rest + part).split(b"\n")
                sys.stdout.buffer.writelines(line + b"\n" for line in lines if pattern.search(line))
            sys.stdout.buffer.flush()
        if pattern is not None and rest and pattern.search(rest):
            sys.stdout.buffer.write(rest + b"\n")

    with_client(work)


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@limited
@in_json
def wait(jobs: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait for jobs to end. Exit code: 0 all succeeded, 1 some failed, 3 cancelled, 124 time-out."""
    return with_client(lambda client: wait_for(client, jobs, timeout, as_json))


async def wait_for(client: "AsyncClient", names: Sequence[str], timeout: float | None, as_json: bool) -> int:
    """Wait for jobs, print how each ended, and return the exit code of `khomas wait`."""
    from khomas.client.errors import CANCELLED, FAILED
    from khomas.client.jobs import state_of

    ticker = Ticker()
    found = await client.jobs.wait(names, timeout=timeout, on_look=lambda jobs: ticker(_progress(jobs)))
    ticker.done()
    for job in found:
        say(_row(job), _progress([job]), as_json)
    states = {state_of(job) for job in found}
    if "FAILED" in states:
        return FAILED
    return CANCELLED if "CANCELLED" in states else 0


def _progress(jobs: list[Any]) -> str:
    parts = []
    for job in jobs:
        if job.HasField("counts"):
            counts = dict(job.counts.by_state)
            done = sum(counts.get(state, 0) for state in ("SUCCEEDED", "FAILED", "CANCELLED"))
            states = " · ".join(f"{state.lower()} {number}" for state, number in sorted(counts.items()) if number)
            reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(job.counts.by_reason.items()))
            parts.append(f"{job.uid}  {done}/{job.counts.total}  {states}{f' ({reasons})' if reasons else ''}")
        else:
            row = _row(job)
            why = f" ({row['reason']})" if row["reason"] else ""
            parts.append(f"{job.uid}  {row['state']}{why} {row['message']}".rstrip())
    return "; ".join(parts)
