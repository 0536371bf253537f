"""Plug-ins by entry point."""

from importlib.metadata import EntryPoint

import pytest

from khomas.kit.plugins import PluginBroken, installed, load


def test_services_of_the_suite_are_found_by_name() -> None:
    assert list(installed("khomas.services")) == sorted(installed("khomas.services"))
    assert "catalog" in installed("khomas.services")


def test_unknown_group_is_empty() -> None:
    assert installed("khomas.nothing") == {}


def test_plugin_is_imported_on_demand() -> None:
    assert load(EntryPoint("dumps", "json:dumps", "khomas.test")).__name__ == "dumps"


@pytest.mark.parametrize("value", ["khomas_nowhere:x", "json:nothing"])
def test_broken_plugin_is_named_with_its_group_and_a_remedy(value: str) -> None:
    with pytest.raises(PluginBroken, match=r"'broken' of khomas\.test .* Install"):
        load(EntryPoint("broken", value, "khomas.test"))
