"""Settings of the catalogue."""

from datetime import timedelta

from pydantic import Field

from khomas.kit.config import ServiceSettings


class CatalogSettings(ServiceSettings, env_prefix="KHOMAS_CATALOG_"):
    """What can be set; every default works on a laptop."""

    # How long a deletion can be undone when the caller does not say.
    undo_window: timedelta = timedelta(hours=24)
    # How often deletions and adoptions are looked at when nobody calls.
    poll: timedelta = timedelta(seconds=1)
    # Files that an adoption commits at a time.
    adoption_batch: int = Field(default=500, gt=0, le=10_000)
