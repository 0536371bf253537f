"""Backend "kubernetes": a Job of the cluster for every job, with a volume shared with the pods or without one."""

from khomas.scheduler.backends.interface import Backend, BackendPlugin
from khomas.scheduler.backends.kubernetes.calls import KubernetesApi
from khomas.scheduler.backends.kubernetes.direct import DirectBackend
from khomas.scheduler.backends.kubernetes.settings import KubernetesSettings
from khomas.scheduler.backends.kubernetes.volume import KubernetesDialect
from khomas.scheduler.backends.slurm_rest_calls import RestHost
from khomas.scheduler.backends.spool.backend import SpooledBackend


def open_kubernetes(settings: KubernetesSettings) -> Backend:
    """Open a namespace of a cluster."""
    api = KubernetesApi(settings.url, settings.token_file, settings.ca_file, settings.namespace)
    if not settings.shared:
        return DirectBackend(settings, api)
    return SpooledBackend(RestHost(api), settings, KubernetesDialect(settings))


plugin = BackendPlugin(
    name="kubernetes",
    settings=KubernetesSettings,
    open=open_kubernetes,
    credential_options={"token": "token_file"},
)
__all__ = ["KubernetesSettings", "open_kubernetes", "plugin"]
