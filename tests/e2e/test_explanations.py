"""`khomas why`, for everything that can wait or fail, against a real installation."""

import json
from pathlib import Path
from uuid import uuid4

from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.grant_pb2 import Upload
from khomas.client import AsyncClient
from tests.e2e.installation import Installation


def test_failed_adoption_says_what_would_help(khomas: Installation, tmp_path: Path) -> None:
    (tmp_path / "run_7.txt").write_bytes(b"seven")
    khomas.run("se", "create", "why", tmp_path, "--read-only")
    pattern = r"run_(?P<undeclared_key>\d+)"
    said = khomas.run("adopt", "start", "why", "/hess/why", "--pattern", pattern, code=1)
    (adoption,) = [row for row in khomas.rows("adopt", "ls") if row["destination"] == "/hess/why"]
    assert f"khomas why adoptions/{adoption['id']}" in said
    why = khomas.run("why", f"adoptions/{adoption['id']}")
    assert why.startswith("FAILED (FILE_REFUSED): ")
    assert "undeclared_key" in why
    assert f"khomas adopt undo {adoption['id']}" in why


def test_comparison_says_where_it_stands(khomas: Installation) -> None:
    (comparison,) = khomas.rows("se", "check", "local", "--no-wait")
    (why,) = khomas.rows("why", comparison["name"])
    assert why["subject"] == comparison["name"]
    assert "The comparison of local (QUICK)" in why["summary"]


async def test_upload_says_what_it_waits_for(khomas: Installation) -> None:
    async with AsyncClient(khomas.environment["KHOMAS_ENDPOINT"], khomas.token) as client:
        request = pb.BatchCreateUploadsRequest(uploads=[Upload()], request_id=str(uuid4()))
        (opened,) = (await client.connection.call("storage", "BatchCreateUploads", request)).uploads
    assert khomas.run("why", opened.name).startswith("OPEN (NO_BYTES): 0 of at most 1 files have arrived at local")


def test_work_item_says_what_it_waits_for(khomas: Installation, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    khomas.run("put", tmp_path / "a", "/hess/why-item/a", "--dataset", "why/item")
    stage = {"name": "reduce", "data": {"dataset": "why/item", "group_by": "*", "min_files": 2, "max_files": 2}}
    document = {"name": "whyitem", "stages": [{**stage, "job": {"run": ["true"], "wall": "1min"}}]}
    (tmp_path / "whyitem.yaml").write_text(json.dumps(document))
    khomas.run("prod", "create", tmp_path / "whyitem.yaml")
    for _ in range(100):
        if items := khomas.rows("prod", "items", "whyitem"):
            break
    why = khomas.run("why", items[0]["name"])
    assert why.startswith("GROUPED (GROUP_GROWS): 1 files")
    assert "khomas prod flush whyitem reduce" in why
    khomas.run("prod", "cancel", "whyitem")


def test_what_cannot_be_explained_is_told_what_can(khomas: Installation) -> None:
    for subject in ("nothing", "files/0190", "/hess/why", "runs/1"):
        said = khomas.run("why", subject, code=2)
        assert "reconciliations/…" in said
        assert "There is no jobs/" not in said
    assert "khomas trace /hess/why" in khomas.run("why", "/hess/why", code=2)
    assert "There is no" in khomas.run("why", "0190aaaa-none", code=4)
    assert "There is no adoptions/none" in khomas.run("why", "adoptions/none", code=4)
