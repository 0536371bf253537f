"""Settings of the bookkeeping."""

from datetime import timedelta

from khomas.kit.config import ServiceSettings


class BookkeepingSettings(ServiceSettings, env_prefix="KHOMAS_BOOKKEEPING_"):
    """What can be set; every default works on a laptop."""

    # How often productions are looked at when no event comes.
    poll: timedelta = timedelta(seconds=1)
