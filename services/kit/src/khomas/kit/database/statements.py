"""Counting statements, to prove that many rows cost as many statements as one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from khomas.kit.database.engine import Database


@contextmanager
def count_statements(database: Database, counts: Callable[[], object] = lambda: True) -> Iterator[list[str]]:
    """Collect the statements that run inside the block, without those that begin and end transactions.

    Only those for which `counts` is true at that moment: `current_call` leaves out what loops do meanwhile.
    """
    statements: list[str] = []

    def note(_1: Any, _2: Any, statement: str, *_others: Any) -> None:
        if not statement.startswith(("BEGIN", "COMMIT")) and counts():
            statements.append(statement)

    engines = [engine.sync_engine for engine in database.engines]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)
