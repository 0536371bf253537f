"""Access keys in files of the form that the tools of AWS have."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from khomas.kit.credentials.access_key import AccessKey, AccessKeyOptions, keys_in

TEXT = """
[default]
aws_access_key_id = first
aws_secret_access_key = hidden%1

[robot]
aws_access_key_id = second
aws_secret_access_key = hidden2
aws_session_token = hidden3
aws_expiration = 2026-03-01T10:00:00Z
"""


def _credential(tmp_path: Path, text: str = TEXT, profile: str = "default", mode: int = 0o600) -> AccessKey:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(mode)
    return AccessKey("store", AccessKeyOptions(file=path, profile=profile))


def test_keys_are_known_by_name_and_last_for_ever(tmp_path: Path) -> None:
    key = _credential(tmp_path)
    known = key.status()
    assert (known.present, known.subject, known.expires) == (True, "first", None)
    assert key.files() == {"keys": tmp_path / "keys"}
    assert "hidden" not in repr(known) + repr(keys_in(TEXT, "default"))


def test_temporary_keys_end(tmp_path: Path) -> None:
    known = _credential(tmp_path, profile="robot").status()
    assert (known.subject, known.expires) == ("second", datetime(2026, 3, 1, 10, tzinfo=UTC))
    assert not known.usable(datetime.now(UTC))
    assert keys_in(TEXT, "robot").session_token == "hidden3"


@pytest.mark.parametrize(
    ("text", "profile", "trouble"),
    [
        (TEXT, "nobody", "no profile"),
        ("[default]\naws_access_key_id = hidden\n", "default", "needs"),
        ("hidden", "default", "no file of access keys"),
        (TEXT.replace("2026-03-01T10:00:00Z", "hidden"), "robot", "no time"),
    ],
)
def test_what_is_missing_is_told_without_repeating_anything(
    tmp_path: Path, text: str, profile: str, trouble: str
) -> None:
    known = _credential(tmp_path, text, profile).status()
    assert not known.present
    assert trouble in known.trouble
    assert "hidden" not in known.trouble


def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    known = _credential(tmp_path, mode=0o644).status()
    assert not known.present
    assert "chmod 600" in known.remedy
