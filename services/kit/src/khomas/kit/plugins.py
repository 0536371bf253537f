"""Finds plug-ins by entry-point group."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any


class PluginBroken(Exception):
    """An installed plug-in cannot be imported."""

    def __init__(self, point: EntryPoint, cause: BaseException) -> None:
        owner = point.dist.name if point.dist else "an unknown distribution"
        super().__init__(
            f"The plug-in '{point.name}' of {point.group} ({point.value}, from {owner}) cannot be imported: "
            f"{type(cause).__name__}: {cause}. Install what it needs, or uninstall {owner}."
        )


def installed(group: str) -> Mapping[str, EntryPoint]:
    """Return the plug-ins of a group by name, without importing them."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def load(point: EntryPoint) -> Any:  # Any: what it is depends on the group
    """Import one plug-in; raise PluginBroken with what to do if that fails."""
    try:
        return point.load()
    except Exception as cause:
        raise PluginBroken(point, cause) from cause


def load_all(group: str) -> dict[str, Any]:
    """Import every plug-in of a group, by name."""
    return {name: load(point) for name, point in installed(group).items()}
