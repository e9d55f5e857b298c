"""`jobctl notify test`: which channels there are, what became of the message on each, and the exit code."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from scripted import Run

from daemon.settings import Settings

SENT, FAILED, ABSENT = "sent", "FAILED", "absent"
DESKTOPS = {SENT: "exit 0", FAILED: "echo no bus >&2; exit 1", ABSENT: None}
ANSWERS = {SENT: 200, FAILED: 403, ABSENT: None}


@pytest.fixture
def phone() -> Iterator[HTTPServer]:
    """A server that answers with the status which the path names."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(int(self.path.rpartition("/")[2]))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Nothing on standard error."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("desktop", "url", "code"),
    [
        (SENT, SENT, 0),
        (SENT, ABSENT, 0),
        (ABSENT, SENT, 0),
        (SENT, FAILED, 1),
        (FAILED, SENT, 1),
        (ABSENT, FAILED, 1),
        (FAILED, ABSENT, 1),
        (ABSENT, ABSENT, 1),
    ],
)
def test_each_channel_is_named_with_its_result(
    run: Run,
    config: Settings,
    phone: HTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    desktop: str,
    url: str,
    code: int,
) -> None:
    """1 when a channel that there is failed, or there is none; the address is a secret and not repeated."""
    tools = tmp_path / "tools"
    tools.mkdir()
    if script := DESKTOPS[desktop]:
        (tools / "notify-send").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "notify-send").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("sys.platform", "linux")
    if answer := ANSWERS[url]:
        config.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
        address = f"http://127.0.0.1:{phone.server_port}/secret-topic/{answer}"
        config.paths.config_file.write_text(f'notify_url = "{address}"\n')

    plain, machine = run("notify", "test"), run("notify", "test", "--json")

    assert (plain.exit_code, machine.exit_code) == (code, code)
    assert [line.split()[:2] for line in plain.stdout.splitlines()] == [[desktop, "desktop"], [url, "notify_url"]]
    told = json.loads(machine.stdout)
    assert told["schema"] == "homeport.notify/1"
    assert [
        (each["channel"], SENT if each["delivered"] else FAILED if each["present"] else ABSENT)
        for each in told["channels"]
    ] == [("desktop", desktop), ("notify_url", url)]
    assert "secret-topic" not in plain.output + machine.output
