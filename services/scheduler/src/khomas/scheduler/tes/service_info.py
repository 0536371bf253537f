"""What the service says about itself, as GA4GH wants it."""

from importlib.metadata import version
from typing import Any

from khomas.kit.service import Host
from khomas.scheduler.config import TesSettings
from khomas.scheduler.tes.submission import PARAMETERS, VERSION


def service_info(settings: TesSettings, host: Host) -> dict[str, Any]:
    """The document; nothing in it is secret."""
    return {
        "id": settings.service_id or f"khomas.{host.vo}",
        "name": f"Khomas of {host.vo}",
        "description": "Tasks run on the nodes of batch and grid systems, without containers: images name platforms.",
        "type": {"group": "org.ga4gh", "artifact": "tes", "version": f"{VERSION}.0"},
        "organization": {"name": host.vo, "url": settings.organization_url or host.http_url},
        "version": version("khomas-scheduler"),
        "storage": [f"khomas:///{host.vo}/"],
        "tesResources_backend_parameters": list(PARAMETERS),
    }
