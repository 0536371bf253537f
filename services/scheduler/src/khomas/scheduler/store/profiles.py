"""What kinds of jobs used, in the database."""

from collections.abc import Collection, Sequence
from dataclasses import asdict

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import in_values
from khomas.scheduler import tables
from khomas.scheduler.intake.profiles import Used
from khomas.scheduler.store.bulk import add_many

_KEYS = ("profile", "backend", "what", "bucket")


async def write_uses(connection: AsyncConnection, used: Sequence[Used]) -> None:
    """Add what jobs used."""
    await add_many(connection, tables.usage_profile, _KEYS, "number", [asdict(one) for one in used])


async def read_uses(connection: AsyncConnection, profiles: Collection[str]) -> dict[str, list[Used]]:
    """What jobs of these kinds used, by kind."""
    found: dict[str, list[Used]] = {profile: [] for profile in profiles}
    query = select(tables.usage_profile).where(in_values(tables.usage_profile.c.profile, list(profiles)))
    for row in (await connection.execute(query)).all():
        found[row.profile].append(Used(*row))
    return found
