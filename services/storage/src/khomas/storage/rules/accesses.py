"""When replicas were handed out the last time, gathered in memory and written in batches."""

from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from khomas.kit.database import Database, rows_table
from khomas.storage.rules.tables import replica_access
from khomas.storage.tables import replica

_KEYS = ("file_uid", "storage_element")


class Accesses:
    """Notes accesses; what a process has not written when it dies is of no great value."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[tuple[str, str], datetime] = {}

    def note(self, file_uid: str, storage_element: str) -> None:
        """A replica was handed out now."""
        self._noted[file_uid, storage_element] = datetime.now(UTC)

    async def write(self) -> None:
        """Write down what was noted, with one statement."""
        noted, self._noted = self._noted, {}
        if not noted:
            return
        columns = (*_KEYS, "access_time")
        types = {name: replica_access.c[name].type for name in columns}
        async with self._database.write() as connection:
            new = rows_table(connection, types, [(*key, time) for key, time in noted.items()])
            insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(replica_access)
            given = select(*[new.c[name] for name in columns]).where(new.c.file_uid != "")
            statement = insert.from_select(list(columns), given, include_defaults=False)
            later = {"access_time": statement.excluded.access_time}
            await connection.execute(statement.on_conflict_do_update(index_elements=list(_KEYS), set_=later))

    async def prune(self) -> None:
        """Forget replicas that are gone."""
        same = [replica.c[name] == replica_access.c[name] for name in _KEYS]
        gone = ~select(replica.c.path).where(*same).exists()
        async with self._database.write() as connection:
            await connection.execute(delete(replica_access).where(gone))
