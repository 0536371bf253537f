"""What the manifests and docs/how-to/deploy.md set is enough for every service to start."""

import json
import re
from pathlib import Path

import pytest

from khomas.kit.plugins import load_all
from khomas.kit.run import run

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("catalog", "storage", "scheduler", "bookkeeping", "archive")
# A line of a file with settings, wherever it is indented below a step.
LINE = re.compile(r"^ *(KHOMAS_[A-Z_]+)=(.*)$", re.MULTILINE)


def documented(service: str) -> dict[str, str]:
    """Return what the page has the Secret of a service hold: what it shows for the catalogue, and what is its own."""
    shown = dict(LINE.findall((ROOT / "docs/how-to/deploy.md").read_text()))
    prefix = f"KHOMAS_{service.upper()}_"
    catalog = {key.replace("KHOMAS_CATALOG_", prefix): shown[key] for key in shown if key.startswith("KHOMAS_CATALOG_")}
    return catalog | {key: value for key, value in shown.items() if key.startswith(prefix)}


@pytest.mark.parametrize("service", SERVICES)
def test_service_accepts_the_settings_of_the_manifests_and_the_page(
    service: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = dict(LINE.findall((ROOT / f"deploy/k8s/base/{service}/settings.env").read_text()))
    for name, value in (manifest | documented(service)).items():
        monkeypatch.setenv(name, value)
    code = run(load_all("khomas.services")[service], ["check-config"])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert json.loads(printed.out)["auth"]["audiences"] == ["grpcs://khomas.example.org", "https://khomas.example.org"]


def test_every_service_has_a_base() -> None:
    assert sorted(path.parent.name for path in ROOT.glob("deploy/k8s/base/*/settings.env")) == sorted(SERVICES)
