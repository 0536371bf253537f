"""Commands about the health of storage elements: se ls, matrix, check, checks, care; incident ls, show, apply."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.explanations import show_explanation
from khomas.cli.output import TABLE, as_dict, format_of, in_json, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import Ticker, limited, waiting, with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient

_REPAIRS = ("VERIFY", "COPY", "REGISTER", "QUARANTINE", "DELETE", "DECLARE_LOST", "DISMISS", "RESTORE", "DISCARD")
_MODES = ("QUICK", "CHECKSUM", "FULL")


@click.command("ls")
@listing
def se_ls(**options: Any) -> None:
    """List storage elements: space, files, health, last probe, errors, open incidents."""
    form = format_of(options)
    rows = with_client(_elements)
    columns = (
        "id",
        "site",
        "media",
        "files",
        "used",
        "free",
        "full",
        "read_only",
        "health",
        "probed",
        "success",
        "incidents",
    )
    show_rows(rows, form, columns)


async def _elements(client: "AsyncClient") -> list[dict[str, Any]]:
    elements = await client.storage.elements()
    probes = {one.source: one for one in await client.integrity.probes() if one.source == one.destination}
    open_ones: dict[str, int] = {}
    for one in await client.integrity.incidents("state = OPEN OR state = REPAIRING"):
        open_ones[one.storage_element] = open_ones.get(one.storage_element, 0) + 1
    held = {one.storage_element: one for one in await client.integrity.comparisons("state = HELD")}
    rows = []
    for element in elements:
        name = element.name.removeprefix("storageElements/")
        row = _element_row(element, probes.get(name), open_ones.get(name, 0))
        if name in held:
            row["health"] = f"comparison held: {held[name].message}"
        rows.append(row)
    return rows


def _element_row(one: Any, probe: Any, incidents: int) -> dict[str, Any]:
    from khomas.api.storage.v1.storage_element_pb2 import StorageElement

    return {
        "id": one.name.removeprefix("storageElements/"),
        "site": one.site,
        "media": StorageElement.Media.Name(one.media).removeprefix("MEDIA_"),
        "files": one.space.file_count,
        "used": one.space.used_bytes,
        "free": one.space.free_bytes,
        "coming": one.space.reserved_bytes,
        "growth": one.space.growth_bytes_per_day,
        "full": one.space.full_time.ToJsonString()[:10] if one.space.HasField("full_time") else "",
        "labels": dict(one.labels),
        "read_only": one.read_only,
        "health": _health(one, probe),
        "probed": probe.time.ToJsonString() if probe is not None else "",
        "success": _success(probe) if probe is not None else "",
        "incidents": incidents,
        "address": [f"{point.protocol}:{point.address}" for point in one.access_points],
    }


def _health(element: Any, probe: Any) -> str:
    """Return "ok", or the native error of the last look or of the last probe."""
    if not element.health.reachable:
        return element.health.message or "unknown"
    if probe is not None and probe.failed_step:
        return f"{probe.failed_step} failed {probe.failures}x: {probe.message}"
    return "draining" if element.draining else "ok"


def _success(probe: Any) -> str:
    return f"{100 * probe.recent_successes // probe.recent_probes}%" if probe.recent_probes else ""


@click.command("matrix")
@listing
def se_matrix(**options: Any) -> None:
    """Show the ways between storage elements: success and rate of transfers in the last day, else of probes."""
    form = format_of(options)
    rows = with_client(_ways)
    if form.json or form.csv or form.quiet or form.columns:
        show_rows(rows, form, ("source", "destination", "success", "rate", "by", "error"), key="destination")
        return
    names = sorted({row["source"] for row in rows} | {row["destination"] for row in rows})
    cells = {(row["source"], row["destination"]): _cell(row) for row in rows}
    table = [{"from \\ to": source, **{name: cells.get((source, name), "") for name in names}} for source in names]
    show_rows(table, form, ("from \\ to", *names), key="from \\ to")


async def _ways(client: "AsyncClient") -> list[dict[str, Any]]:
    links = (await client.links.all()).links
    probes = {(one.source, one.destination): one for one in await client.integrity.probes()}
    measured = {(one.source, one.destination): one for one in links if one.files or one.errors}
    pairs = sorted({pair for pair in (*probes, *measured) if pair[0] and pair[1]})
    return [_way(pair, measured.get(pair), probes.get(pair)) for pair in pairs]


def _way(pair: tuple[str, str], link: Any, probe: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"source": pair[0], "destination": pair[1]}
    if link is not None:
        error = link.message if link.success < 1 else ""
        return row | {"success": round(100 * link.success), "rate": link.rate, "by": "transfers", "error": error}
    success = round(100 * probe.recent_successes / probe.recent_probes) if probe.recent_probes else 0
    return row | {"success": success, "rate": probe.bytes_per_second, "by": "probes", "error": probe.message}


def _cell(row: dict[str, Any]) -> str:
    rate = f" {row['rate'] / 1e6:.3g} MB/s" if row["rate"] else ""
    return f"{row['success']}%{rate}"


@click.command("check")
@click.argument("storage_element")
@click.option("--mode", type=click.Choice(_MODES, case_sensitive=False), default="QUICK", show_default=True)
@click.option(
    "--max-lost-percent", type=float, default=0.0, help="Stop and ask above this; 0 = as its care policy says."
)
@click.option(
    "--release", is_flag=True, help="STORAGE_ELEMENT is the id of a held comparison: what seems lost is lost."
)
@click.option("--cancel", is_flag=True, help="STORAGE_ELEMENT is the id of a comparison: take it back.")
@click.option("--reason", default="", help="Why it is released.")
@click.option("--no-wait", is_flag=True, help="Only begin.")
@limited
@in_json
def se_check(storage_element: str, as_json: bool, **options: Any) -> int:
    """Compare a storage element with the catalogue. QUICK: names and sizes; CHECKSUM: and checksums; FULL: every byte.

    Leaves with 0 when nothing differs, else with 1.
    """
    if options["release"] and not options["reason"]:
        raise click.UsageError("say why what seems lost is lost: --reason")
    found = with_client(lambda client: _compared(client, storage_element, options))
    row = _comparison_row(found)
    show_one(as_dict(found) if as_json else row, as_json)
    if row["state"] in ("HELD", "FAILED"):
        talk(f"khomas why {found.name} says what would help")
    return 0 if options["no_wait"] or options["cancel"] or _agrees(found) else 1


async def _compared(client: "AsyncClient", name: str, options: dict[str, Any]) -> Any:
    if options["cancel"]:
        return await client.integrity.cancel_comparison(name)
    if options["release"]:
        begun = await client.integrity.release_comparison(name, options["reason"])
    else:
        begun = await client.integrity.compare(name, options["mode"], max_lost_percent=options["max_lost_percent"])
    if options["no_wait"]:
        return begun
    ticker = Ticker()
    found = await client.integrity.wait_for_comparison(
        begun.name, timeout=options["timeout"], on_look=lambda one: ticker(_progress(one))
    )
    ticker.done()
    return found


def _progress(one: Any) -> str:
    from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation

    phase = Reconciliation.Phase.Name(one.phase).removeprefix("PHASE_").lower()
    return f"{phase}: {one.expected_files} expected, {one.found_files} found, {one.verified_files} verified"


def _agrees(one: Any) -> bool:
    from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation

    return one.state == Reconciliation.STATE_SUCCEEDED and not one.findings.ListFields()


def _comparison_row(one: Any) -> dict[str, Any]:
    from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation

    return {
        "id": one.name.removeprefix("reconciliations/"),
        "storage_element": one.storage_element,
        "mode": Reconciliation.Mode.Name(one.mode).removeprefix("MODE_"),
        "state": Reconciliation.State.Name(one.state).removeprefix("STATE_"),
        "expected": one.expected_files,
        "found": one.found_files,
        "verified": one.verified_files,
        "lost": one.findings.lost,
        "dark": one.findings.dark,
        "size": one.findings.size_differs,
        "checksum": one.findings.checksum_differs,
        "unreadable": one.findings.unreadable,
        "message": one.message,
        "created": one.create_time.ToJsonString(),
    }


@click.command("checks")
@click.option("--filter", "filter_text", default="", help='AIP-160: storage_element = "local" AND state = HELD.')
@listing
def se_checks(filter_text: str, **options: Any) -> None:
    """List comparisons of storage elements with the catalogue."""
    form = format_of(options)
    found = with_client(lambda client: client.integrity.comparisons(filter_text))
    columns = ("id", "storage_element", "mode", "state", "expected", "lost", "dark", "size", "checksum", "created")
    show_rows([_comparison_row(one) for one in found], form, columns)


@click.command("care")
@click.argument("storage_element")
@click.option("--verify-period", help="Read every byte again within this time: 90d; 0 = never.")
@click.option("--verify-bytes-per-second", help="At this rate at most: 20MB.")
@click.option("--reconcile-interval", help="Compare names and sizes so often: 7d; 0 = only when asked for.")
@click.option("--max-lost-percent", type=float, help="Comparisons stop and ask above this.")
@click.option("--repair-automatically/--ask", default=None, help="Repair from good copies without asking.")
@click.option("--deletions-per-second", type=float, help="At most; 0 = as fast as the storage can.")
@click.option("--probe-interval", help="Try it with a small file so often: 5m; 0 = never.")
@in_json
def se_care(storage_element: str, as_json: bool, **options: Any) -> None:
    """Show or change how a storage element is looked after."""
    given = {name: value for name, value in options.items() if value is not None}
    found = with_client(lambda client: _cared(client, storage_element, given))
    show_one(as_dict(found) if as_json else _care_row(found), as_json)


async def _cared(client: "AsyncClient", storage_element: str, given: dict[str, Any]) -> Any:
    from khomas.api.storage.v1.care_pb2 import CarePolicy
    from khomas.client.units import duration, size

    if not given:
        return await client.integrity.care(storage_element)
    policy = CarePolicy(name=f"storageElements/{storage_element}/carePolicy")
    for name, value in given.items():
        if name in ("verify_period", "reconcile_interval", "probe_interval"):
            getattr(policy, name).FromSeconds(0 if value == "0" else int(duration(value).total_seconds()))
        elif name == "verify_bytes_per_second":
            policy.verify_bytes_per_second = size(value)
        else:
            setattr(policy, name, value)
    return await client.integrity.update_care(policy, list(given))


def _care_row(one: Any) -> dict[str, Any]:
    return {
        "storage_element": one.name.split("/")[1],
        "verify_period": _span(one.verify_period),
        "verify_bytes_per_second": one.verify_bytes_per_second,
        "reconcile_interval": _span(one.reconcile_interval),
        "max_lost_percent": one.max_lost_percent,
        "repair_automatically": one.repair_automatically,
        "deletions_per_second": one.deletions_per_second or "no limit",
        "probe_interval": _span(one.probe_interval),
    }


def _span(duration: Any) -> str:
    return str(duration.ToTimedelta()) if duration.ToTimedelta() else "never"


@click.group()
def incident() -> None:
    """See and decide what becomes of files that are lost, damaged or unknown."""


@incident.command("ls")
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@click.option("--filter", "filter_text", default="", help='AIP-160: kind = LOST AND storage_element = "dcache".')
@listing
def incident_ls(everything: bool, filter_text: str, **options: Any) -> None:
    """List incidents."""
    form = format_of(options)
    terms = [] if everything else ["(state = OPEN OR state = REPAIRING)"]
    terms += [f"({filter_text})"] if filter_text else []
    found = with_client(lambda client: client.integrity.incidents(" AND ".join(terms)))
    columns = ("id", "storage_element", "kind", "state", "proposed", "repair", "path", "message")
    show_rows([_incident_row(one) for one in found], form, columns)


def _incident_row(one: Any) -> dict[str, Any]:
    from khomas.api.storage.v1.incident_pb2 import Incident, Repair

    def word(repair: Any) -> str:
        return Repair.Name(repair).removeprefix("REPAIR_") if repair else ""

    return {
        "id": one.name.removeprefix("incidents/"),
        "storage_element": one.storage_element,
        "kind": Incident.Kind.Name(one.kind).removeprefix("KIND_"),
        "state": Incident.State.Name(one.state).removeprefix("STATE_"),
        "proposed": word(one.proposed_repair),
        "repair": word(one.repair),
        "path": one.path,
        "file": one.file,
        "expected_size": one.expected_size_bytes if one.expected_size_bytes >= 0 else "",
        "found_size": one.found_size_bytes if one.found_size_bytes >= 0 else "",
        "requester": one.requester,
        "reason": one.reason,
        "message": one.message,
        "transfer": one.transfer,
        "quarantine_path": one.quarantine_path,
        "created": one.create_time.ToJsonString(),
    }


@incident.command("show")
@click.argument("name")
@in_json
def incident_show(name: str, as_json: bool) -> None:
    """Show an incident, and what can be done about it."""
    found, why = with_client(lambda client: _shown(client, name))
    if as_json:
        show_one(as_dict(found) | {"explanation": as_dict(why)}, as_json=True)
        return
    show_one(_incident_row(found), as_json=False)
    click.echo()
    show_explanation(why, as_json=False)


async def _shown(client: "AsyncClient", name: str) -> tuple[Any, Any]:
    return await client.integrity.incident(name), await client.integrity.explain_incident(name)


@incident.command("apply")
@click.argument("names", nargs=-1)
@click.option(
    "--filter", "filter_text", default="", help='Instead of names: kind = DARK AND storage_element = "dcache".'
)
@click.option("--repair", type=click.Choice(_REPAIRS, case_sensitive=False), help="Default: what is proposed for each.")
@click.option("--reason", required=True, help="Why; kept with the incidents.")
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@waiting("Of incidents by name: wait until the repairs are done, or somebody has to decide again.")
@in_json
def incident_apply(
    names: tuple[str, ...],
    filter_text: str,
    repair: str | None,
    reason: str,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Accept repairs of open incidents, all or nothing; RESTORE and DISCARD are for what was moved aside."""
    if wait and not names:
        raise click.UsageError("--wait needs the incidents by name")
    accepted = with_client(
        lambda client: client.integrity.apply_repairs(
            names, filter_text=filter_text, repair=repair or "UNSPECIFIED", reason=reason, validate_only=dry_run
        )
    )
    if as_json:
        show_one({"accepted": accepted, "dry_run": dry_run}, as_json=True)
    else:
        talk(f"{accepted} repairs {'would be' if dry_run else 'are'} accepted")
    return _repaired(names, timeout, as_json) if wait and not dry_run else 0


def _repaired(names: Sequence[str], timeout: float | None, as_json: bool) -> int:
    """Wait for repairs, print the incidents as they are then, and return 1 if one of them is open."""
    ticker = Ticker()
    found = with_client(
        lambda client: client.integrity.wait_for_repairs(
            names, timeout=timeout, on_look=lambda left: ticker(f"{left} repairs under way")
        )
    )
    ticker.done()
    rows = [_incident_row(one) for one in found]
    show_rows(rows, replace(TABLE, json=as_json), ("id", "state", "message"))
    return int(any(row["state"] == "OPEN" for row in rows))


SE_COMMANDS = (se_ls, se_matrix, se_check, se_checks, se_care)
