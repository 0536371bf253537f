"""Opens the executors that the settings name."""

from collections.abc import Mapping

from khomas.kit.credentials import CredentialProvider
from khomas.kit.plugins import installed, load
from khomas.storage.config import StorageSettings
from khomas.storage.executors.interface import Executor, Plugin, Settings
from khomas.storage.executors.outside import Route

_GROUP = "khomas.storage.executors"


class ExecutorMisconfigured(Exception):
    """The settings of an executor are wrong."""


def open_all(settings: StorageSettings, credentials: Mapping[str, CredentialProvider]) -> dict[str, Executor]:
    """Open executors without connecting to them; raise ExecutorMisconfigured with what to change."""
    plugins = installed(_GROUP)
    executors: dict[str, Executor] = {}
    for name, wanted in settings.executors.items():
        if wanted.plugin not in plugins:
            there = ", ".join(plugins) or "none"
            raise ExecutorMisconfigured(f"executors.{name}: no plug-in {wanted.plugin} is installed; there is {there}")
        if wanted.credential and wanted.credential not in credentials:
            raise ExecutorMisconfigured(f"executors.{name}: the settings name no credential {wanted.credential}")
        plugin: Plugin = load(plugins[wanted.plugin])
        try:
            chosen = Settings(wanted.address, credentials.get(wanted.credential), wanted.options)
            executors[name] = plugin.open(chosen)
        except ValueError as error:
            raise ExecutorMisconfigured(f"executors.{name}: {error}") from error
    return executors


def routes_of(settings: StorageSettings) -> list[Route]:
    """Return the routes; raise ExecutorMisconfigured for one to an executor that is not there."""
    for route in settings.executor_routes:
        if route.executor not in settings.executors:
            raise ExecutorMisconfigured(f"executor_routes: there is no executor {route.executor}")
    return [Route(one.executor, one.source, one.destination) for one in settings.executor_routes]
