"""The client: `from khomas.client import Client` for scripts, `AsyncClient` for programs."""

from khomas.client.async_client import AsyncClient
from khomas.client.client import Client, Job
from khomas.client.errors import KhomasError

__all__ = ["AsyncClient", "Client", "Job", "KhomasError"]
