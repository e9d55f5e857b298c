"""What leaves this computer in a report: neither secrets nor rows, whatever they are called or wherever they stand."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from stored import NOW, Stored

from daemon import settings
from daemon.cli.jobctl import jobctl
from daemon.cli.redact import Redactor, known_secrets

ROW = 'The customer says: "my parcel number is 4711-0815", and wants it today.\nPlease answer kindly.'
CHALLENGE = "c" * 64


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A report about a job whose records are full of what must not be told."""
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VAST_API_KEY", "canary-vast-key")
    monkeypatch.setenv("HF_TOKEN", "canary-hf-token")
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = settings.load().paths
    stored = Stored(paths.database)
    paths.config.mkdir()
    paths.config_file.write_text('notify_url = "https://ntfy.example/canary-topic"\n')
    paths.data.mkdir()
    (paths.data / "d1.jsonl").write_text(json.dumps({"prompt": ROW, "completion": "yes"}) + "\n")
    data = json.dumps({"sft": {"sha256": "d1", "rows": 1, "original_sha256": "d0"}})
    stored.job("k7f3qd", spec_text="name: bot\n", data_json=data)
    stored.lease("k7f3qd", challenge=CHALLENGE)
    request = json.dumps({"offer": 1, "challenge": CHALLENGE})
    stored.operation("create", "DONE", job_id="k7f3qd", request=request, reply=f"echoed {CHALLENGE}")
    body = json.dumps({"why": "401 for key canary-vast-key", "detail": ROW.splitlines()[0]})
    stored.insert("events", job_id="k7f3qd", at=NOW, kind="job.held", by="daemon", body=body)
    sample = json.dumps({"sample": "Four words of it"})  # too few to be known for a row
    stored.insert("events", job_id="k7f3qd", at=NOW, kind="verify.report", by="daemon", body=sample)
    log = paths.job_folders / "k7f3qd" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text(f"step 1\nValueError: cannot tokenize {ROW.splitlines()[0]}\ntoken canary-hf-token\nstep 2\n")
    paths.log.write_text(
        f'{{"event": "x", "folder": "{tmp_path}/models", "url": "https://ntfy.example/canary-topic"}}\n'
    )

    result = CliRunner().invoke(jobctl, ["report", "k7f", "--to", str(tmp_path / "r.zip")], catch_exceptions=False)

    assert result.exit_code == 0, result.stdout
    assert (tmp_path / "r.zip").stat().st_mode & 0o077 == 0
    with zipfile.ZipFile(tmp_path / "r.zip") as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_nothing_private_is_in_it(bundle: dict[str, str], tmp_path: Path) -> None:
    everything = "\n".join(bundle.values())

    for secret in ("canary", CHALLENGE, "4711-0815", "Four words", str(tmp_path)):
        assert secret not in everything


def test_what_helps_is_in_it(bundle: dict[str, str]) -> None:
    """States, operations, machines and the healthy lines of the logs are there to be read."""
    assert set(bundle) >= {"about.json", "job.yaml", "events.jsonl", "operations.jsonl", "leases.jsonl", "machine.log"}
    event = json.loads(bundle["operations.jsonl"].splitlines()[0])
    assert (event["kind"], event["state"], event["request"]["offer"]) == ("create", "DONE", 1)
    assert json.loads(bundle["leases.jsonl"])["instance_id"] == 29481133
    assert bundle["machine.log"].splitlines() == ["step 1", "[holds a training row]", "token [secret]", "step 2"]
    assert "[text of the model]" in bundle["events.jsonl"]
    assert bundle["job.yaml"] == "name: bot\n"


def test_hosts_that_need_no_proxy_are_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The background service keeps both; a proxy's address may hold a password."""
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    loaded = settings.load()
    loaded.paths.config.mkdir()
    loaded.paths.environment_file.write_text("NO_PROXY=localhost\nhttps_proxy=http://ann:canary@proxy:1\n")

    secrets = known_secrets(loaded)

    assert "http://ann:canary@proxy:1" in secrets and "localhost" not in secrets


def test_a_report_needs_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    assert CliRunner().invoke(jobctl, ["report", "k7f"]).exit_code == 4

    Stored(settings.load().paths.database)
    assert CliRunner().invoke(jobctl, ["report", "k7f"]).exit_code == 3


@pytest.mark.parametrize("at", range(20))
def test_an_excerpt_of_a_row_is_found_wherever_it_begins(tmp_path: Path, at: int) -> None:
    """Twice a block's length, at any place of the row."""
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": ROW}]}) + "\n")

    excerpt = ROW.splitlines()[0][at : at + 48]
    assert Redactor([], [file]).texts({"log": f"near {excerpt}!"}) == {"log": "[holds a training row]\n"}


@pytest.mark.parametrize("cut", [1, 2, 4, 6])
def test_a_data_file_that_was_cut_off_is_as_private(tmp_path: Path, cut: int) -> None:
    """Half a row, as a full disk leaves it, is no JSON and still a row."""
    file = tmp_path / "d.jsonl"
    line = ROW.splitlines()[0]
    file.write_text(json.dumps({"messages": [{"role": "user", "content": line + "ü"}]})[:-cut])

    shown = {"log": f"near {line}!"}
    assert Redactor([], [file]).texts(shown) == {"log": "[holds a training row]\n"}


def test_a_row_of_several_lines_is_found_line_by_line(tmp_path: Path) -> None:
    """As a log prints it, and as JSON holds it in one; a line of less than a block is left, which the report says."""
    lines = ["ab", "Account 4711 of Jane Doe, Berlin", "PIN 0815", "and a second account in Vienna"]
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"prompt": "\n".join(lines), "completion": "yes"}) + "\n")
    shown = {"log": "\n".join(["before", *lines]), "json": json.dumps({"error": "\r\n".join(lines)})}

    found = Redactor([], [file]).texts(shown)

    hidden = "[holds a training row]"
    assert found["log"].splitlines() == ["before", "ab", hidden, "PIN 0815", hidden]
    assert found["json"].splitlines() == [hidden]


def test_a_report_replaces_nothing_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model, for one."""
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    Stored(settings.load().paths.database).job("k7f3qd")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")

    result = CliRunner().invoke(jobctl, ["report", "k7f", "--to", str(tmp_path / "model.gguf")])

    assert result.exit_code == 1 and "is there already" in result.stderr
    assert (tmp_path / "model.gguf").read_bytes() == b"GGUF"
