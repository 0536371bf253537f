"""Why the deletion of a replica waits, what would change it and who can."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import Database
from khomas.storage.reconciling.errors import DeletionNotFound
from khomas.storage.rows import mapping
from khomas.storage.tables import deletion

PREFIX = "deletions/"
Remedy = explanation_pb2.Remedy
_ITSELF = Remedy(who="nobody: it resolves itself", action="Wait for the next try.")
_REMEDIES: Mapping[int, Sequence[Remedy]] = {
    pb.DELETION_REASON_UNDO_WINDOW: (
        Remedy(who="nobody: it resolves itself", action="It begins when the undo window is over."),
        Remedy(who="you", action="Take it back.", command="khomas undelete {file}"),
    ),
    pb.DELETION_REASON_RATE: (
        _ITSELF,
        Remedy(
            who="operator",
            action="Let {storage_element} take more deletions a second.",
            command="khomas se care {storage_element} --deletions-per-second 100",
        ),
    ),
    pb.DELETION_REASON_TRANSIENT: (_ITSELF,),
    pb.DELETION_REASON_STILL_THERE: (
        _ITSELF,
        Remedy(who="site", action="See why {storage_element} does not delete what it says it does."),
    ),
    pb.DELETION_REASON_UNREACHABLE: (
        Remedy(who="site", action="Bring {storage_element} back.", command="khomas se ls"),
        _ITSELF,
    ),
    pb.DELETION_REASON_REFUSED: (
        Remedy(who="site", action="Let the service delete {path} on {storage_element}."),
        _ITSELF,
    ),
    pb.DELETION_REASON_CREDENTIAL: (Remedy(who="operator", action="Renew the credential of the storage service."),),
    pb.DELETION_REASON_CATALOG: (_ITSELF, Remedy(who="operator", action="See why the catalogue does not answer.")),
    pb.DELETION_REASON_CONFIGURATION: (
        Remedy(who="operator", action="Correct the StorageElement {storage_element}.", command="khomas se ls"),
    ),
    pb.DELETION_REASON_PROTECTED: (Remedy(who="operator", action="Change the rule that wants it there."),),
}


class DeletionReasons:
    """Answers ExplainDeletion."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Tell why one waits."""
        query = select(deletion).where(deletion.c.uid == name.removeprefix(PREFIX))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise DeletionNotFound(name=name)
        return _explanation(name, mapping(row))


def _explanation(name: str, row: Mapping[str, Any]) -> explanation_pb2.Explanation:
    waiting = row["state"] == pb.Deletion.STATE_WAITING
    reason = (row["reason"] or pb.DELETION_REASON_UNDO_WINDOW) if waiting else 0
    answer = explanation_pb2.Explanation(
        subject=name,
        state=pb.Deletion.State.Name(row["state"]).removeprefix("STATE_"),
        reason=pb.DeletionReason.Name(pb.DeletionReason.ValueType(reason)).removeprefix("DELETION_REASON_")
        if reason
        else "",
        summary=_summary(row),
        remedies=[_filled(one, row) for one in _REMEDIES.get(reason, ())],
        details=[f"{row['attempts']} tries so far."] if row["attempts"] else [],
    )
    answer.since.FromDatetime(row["create_time"])
    if waiting:
        answer.next_check_time.FromDatetime(row["next_attempt_time"])
    return answer


def _summary(row: Mapping[str, Any]) -> str:
    what = f"{row['path']} on {row['storage_element']} (of {row['file']})"
    match row["state"]:
        case pb.Deletion.STATE_CONFIRMED:
            return f"{what} is gone; the storage has confirmed it."
        case pb.Deletion.STATE_UNDONE:
            return f"{what} stays: {row['message'] or 'the deletion was taken back'}."
    return f"{what} waits to be deleted{': ' + row['message'] if row['message'] else ''}."


def _filled(remedy: Remedy, row: Mapping[str, Any]) -> Remedy:
    def fill(text: str) -> str:
        # Not str.format: a path may hold braces.
        for name in ("file", "storage_element", "path"):
            text = text.replace(f"{{{name}}}", row[name])
        return text

    return Remedy(who=remedy.who, action=fill(remedy.action), command=fill(remedy.command))
