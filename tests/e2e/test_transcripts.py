"""What people type, against a real installation."""

import asyncio
import json
import re
from pathlib import Path

from khomas.client import AsyncClient, Client
from tests.e2e.installation import Installation
from tests.testbeds.processes import until


def client_of(khomas: Installation) -> Client:
    return Client(khomas.environment["KHOMAS_ENDPOINT"], khomas.token)


def test_submit_says_where_the_job_went_and_how_to_follow_it(khomas: Installation) -> None:
    said = khomas.run(
        "submit", "--cpus", 1, "--memory", "240MB", "--wall", "1h", "--on", "local", "--", "echo", "hello"
    )
    found = re.fullmatch(r"job (\S+) submitted to local \(queue default\); follow with: khomas logs -f (\S+)\n", said)
    assert found
    assert found[1] == found[2]
    assert khomas.run("logs", "-f", found[1]) == "hello\n"


def test_the_same_file_runs_elsewhere_by_one_word(khomas: Installation, tmp_path: Path) -> None:
    document = tmp_path / "job.yaml"
    document.write_text("name: hello\nrun: [echo, hello]\nwall: 1min\n")
    job = khomas.submit(document, "--on", "local")
    assert khomas.rows("show", job)[0]["spec"]["placement"]["backends"] == ["local"]
    refused = khomas.run("submit", document, "--on", "slurm", code=2)
    assert "local" in refused


def test_a_job_finds_the_trace_of_its_submission_in_its_environment(khomas: Installation) -> None:
    job = khomas.submit("--", "sh", "-c", "echo $TRACEPARENT")
    assert khomas.run("logs", job).startswith(f"00-{khomas.rows('show', job)[0]['trace_id']}-")


def test_dry_run_says_backend_reason_and_script_and_submits_nothing(khomas: Installation, tmp_path: Path) -> None:
    before = len(khomas.rows("ls", "--limit", 0))
    said = khomas.run("submit", "--memory", "100MB", "--dry-run", "--", "echo", "x")
    assert said.startswith("backend local: ")
    khomas.run("submit", "--write-script", tmp_path / "out", "--", "echo", "x")
    assert any((tmp_path / "out").rglob("*"))
    assert len(khomas.rows("ls", "--limit", 0)) == before


def test_a_grid_becomes_an_array_with_derived_values(khomas: Installation) -> None:
    said = khomas.run(
        *("submit", "--grid", "zenith=0,18,60", "--grid", "seed=1..4", "--derive", "emin=0.005/cos(radians(zenith))"),
        *("--max-running", 4, "--", "echo", "{zenith}", "{emin:.6f}", "{seed}"),
    )
    found = re.fullmatch(r"array (\S+) 12 jobs\n", said)
    assert found
    assert "12/12" in khomas.run("wait", found[1], "--timeout", "45s")
    assert khomas.run("logs", f"{found[1]}/8") == "60 0.010000 1\n"


def test_wait_ends_with_the_code_of_what_happened(khomas: Installation) -> None:
    khomas.submit("--", "true")
    khomas.submit("--", "false", code=1)
    (job,) = khomas.rows("submit", "--", "sleep", "60")
    khomas.run("wait", job["id"], "--timeout", "1s", code=124)
    khomas.run("cancel", job["id"], "--yes")
    khomas.run("wait", job["id"], "--timeout", "30s", code=3)
    khomas.run("wait", "01a1fc00-0000-7000-8000-000000000000", code=4)
    khomas.run("--endpoint", "127.0.0.1:9", "ls", code=6)
    khomas.run("submit", "--memory", "2400", "--", "true", code=2)


def test_logs_follow_a_job_live(khomas: Installation) -> None:
    (job,) = khomas.rows("submit", "--", "sh", "-c", "echo one; sleep 0.5; echo two >&2; echo three")
    assert khomas.run("logs", "-f", job["id"]) == "one\nthree\n"
    assert khomas.run("logs", "--stderr", job["id"]) == "two\n"
    assert khomas.run("logs", "--grep", "thr", job["id"]) == "three\n"


def test_why_names_cause_and_remedy(khomas: Installation) -> None:
    job = khomas.submit("--", "sh", "-c", "echo broken >&2; exit 7", code=1)
    said = khomas.run("why", job)
    assert said.startswith("FAILED (APP_EXIT_CODE)")
    assert "7" in said
    assert f"khomas retry {job}" in said
    assert "broken" in said


def test_ls_finds_by_state_and_tag_and_refuses_unknown_states(khomas: Installation) -> None:
    khomas.submit("--tag", "prod=26", "--", "false", code=1)
    khomas.submit("--tag", "prod=26", "--", "true")
    rows = khomas.rows("ls", "--state", "failed", "--tag", "prod=26", "--since", "1d", "-o", "id,reason,node,age")
    assert [row["reason"] for row in rows] == ["APP_EXIT_CODE"]
    refused = khomas.run("ls", "--state", "faild", code=2)
    assert "FAILED" in refused
    # What DIRAC calls it is like none of ours.
    assert "SUCCEEDED" in khomas.run("ls", "--state", "done", code=2)


def test_retry_runs_only_what_failed_with_more_memory(khomas: Installation) -> None:
    script = "test {index} -ne 2"
    array = khomas.submit("--count", 4, "--memory", "200MB", "--", "sh", "-c", script, code=1)
    (answer,) = khomas.rows("retry", array, "--failed", "--reason", "APP_EXIT_CODE", "--memory", "+50%")
    assert answer["retried"] == 1
    (new,) = khomas.rows("show", answer["jobs"][0])
    assert int(new["spec"]["resources"]["memory_bytes"]) == 300_000_000
    khomas.run("wait", answer["jobs"][0], "--timeout", "45s", code=1)
    assert khomas.rows("show", f"{array}/2")[0]["status"]["attempt"] == 1


def test_cancel_counts_what_it_met(khomas: Installation) -> None:
    (array,) = khomas.rows("submit", "--count", 6, "--max-running", 2, "--", "sleep", "60")
    said = khomas.run("cancel", array["id"], "--yes")
    cancelled, cancelling, final = map(int, re.findall(r"\d+", said))
    assert cancelled + cancelling == 6
    assert final == 0
    khomas.run("wait", array["id"], "--timeout", "45s", code=3)


def test_a_production_is_made_shown_and_complete(khomas: Installation, tmp_path: Path) -> None:
    (tmp_path / "simulate.yaml").write_text(
        json.dumps(
            {
                "name": "gspectrum",
                "stages": [
                    {
                        "name": "simulate",
                        "grid": {"zenith": [0, 60]},
                        "derive": {"emin": "0.005/cos(radians(zenith))"},
                        "requested_events": "1000",
                        "events_per_job": "400",
                        "job": {"run": ["echo", "{zenith}", "{events}", "{seed}"], "wall": "1min"},
                    }
                ],
            }
        )
    )
    khomas.run("prod", "create", tmp_path / "simulate.yaml", "--requested", "800")
    khomas.run("prod", "wait", "gspectrum", "--timeout", "45s")
    (shown,) = khomas.rows("prod", "show", "gspectrum")
    assert [cell["progress"]["produced_events"] for cell in shown["cells"]] == [800, 800]
    assert "0.01" in khomas.run("prod", "show", "gspectrum")
    assert khomas.run("trace", "gspectrum").startswith("productions/gspectrum  production")


def test_a_script_uses_jobs_as_objects(khomas: Installation, tmp_path: Path) -> None:
    script = tmp_path / "a.sh"
    script.write_text("#!/bin/sh\necho hello from a script\n")
    script.chmod(0o755)
    with client_of(khomas) as client:
        job = client.submit(str(script), memory="200 MiB", on="local", tags={"script": "14"})
        job.wait(45)
        assert job.stdout() == "hello from a script\n"
        other = job.copy(name="again").submit().wait(45)
        assert other.state == "SUCCEEDED"
        assert client.job(job.id).copy().submit().wait(45).stdout() == "hello from a script\n"
        failed = client.submit("false", tags={"script": "14"}).wait(45)
        assert client.jobs(state="failed", tags={"script": 14}).by("reason").count() == {"APP_EXIT_CODE": 1}
        assert "APP_EXIT_CODE" in failed._repr_html_()


async def test_a_program_watches_an_array(khomas: Installation) -> None:
    async with AsyncClient(khomas.environment["KHOMAS_ENDPOINT"], khomas.token) as client:
        array = await client.submit("true", split={"count": 3})
        async with asyncio.timeout(45):
            changes = [change async for change in client.watch(array)]
    ended = {change.job for change in changes if change.state == "SUCCEEDED"}
    assert ended == {array.name, *(f"{array.name}/{index}" for index in range(3))}


def test_files_go_in_are_found_and_come_back(khomas: Installation, tmp_path: Path) -> None:
    source = tmp_path / "my run é.txt"
    source.write_bytes(bytes(range(256)) * 1000)
    khomas.run("meta", "declare", "zenith=number:deg")
    khomas.run("put", source, "/hess/test/", "--meta", "zenith=45", "--dataset", "test/files")
    (found,) = khomas.rows("find", "/hess/test", "--where", "metadata.zenith > 40")
    assert found["size"] == 256_000
    assert f"part of: {found['name']}" in khomas.run("trace", "test/files")
    khomas.run("get", found["name"], "--to", tmp_path / "back")
    assert (tmp_path / "back" / source.name).read_bytes() == source.read_bytes()
    khomas.run("get", found["name"], "--to", tmp_path / "back", code=2)


def test_what_a_person_puts_is_theirs_and_leads_to_the_upload_and_back(khomas: Installation, tmp_path: Path) -> None:
    source = tmp_path / "put.txt"
    source.write_text("put")
    khomas.run("put", source, "/hess/put/")
    (found,) = khomas.rows("find", "/hess/put")
    khomas.run("put", source, "/hess/put/")
    assert khomas.rows("find", "/hess/put") == [found]
    assert found["owner"] == khomas.rows("show", khomas.submit("--", "true"))[0]["owner"]
    upload = f"uploads/{found['origin']}"
    until(lambda: upload in khomas.run("trace", found["name"]), 45, "the upload is in the trace")
    assert found["name"] in khomas.run("trace", "--forward", upload)
    assert f"copy of: storageElements/{found['paths'][0]}" in khomas.run("trace", found["name"])


def test_a_job_file_survives_export(khomas: Installation, tmp_path: Path) -> None:
    job = khomas.submit("--memory", "300MB", "--wall", "2min", "--tag", "a=b", "--", "echo", "x y", "{{braces}}")
    document = tmp_path / "again.yaml"
    document.write_text(khomas.run("export", job))
    again = khomas.submit(document)
    assert khomas.rows("show", again)[0]["spec"] == khomas.rows("show", job)[0]["spec"]


def test_the_token_in_use_is_explained_without_options(khomas: Installation) -> None:
    assert json.loads(khomas.run("auth", "explain"))["accepted"] is True
