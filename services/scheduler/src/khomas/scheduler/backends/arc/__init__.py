"""Backend "arc": the CE of NorduGrid."""

from khomas.scheduler.backends.arc.backend import ArcBackend
from khomas.scheduler.backends.arc.settings import ArcSettings
from khomas.scheduler.backends.interface import BackendPlugin


def open_arc(settings: ArcSettings) -> ArcBackend:
    """Open the way to one CE; it connects with its first call."""
    return ArcBackend(settings)


plugin = BackendPlugin(
    name="arc",
    settings=ArcSettings,
    open=open_arc,
    credential_options={"proxy": "certificate", "token": "token"},
)
