"""A model hub on this machine: as much of huggingface.co as a download of one repository asks for."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO, COMMIT = "owner/tiny-7b", "c" * 40
BLOCK = 1 << 16


@dataclass
class Hub:
    """`files` by name, with the sizes `claimed` where they are lied about; `sent` counts how often each was sent whole;
    `pause_s` comes before every block."""

    files: dict[str, bytes]
    pause_s: float = 0.0
    refuse: bool = False
    url: str = ""
    claimed: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)


@contextmanager
def hub_of(folder: Path) -> Iterator[Hub]:
    """A hub whose one repository holds the files of `folder`."""
    hub = Hub({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            if hub.refuse:
                return self.say(401, b"{}", {}, body)
            sizes = {name: len(content) for name, content in hub.files.items()} | hub.claimed
            if path.startswith(f"/api/models/{REPO}/tree"):
                tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
                return self.say(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
            if path.startswith(f"/api/models/{REPO}"):
                siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
                said = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
                return self.say(200, json.dumps(said).encode(), {"Content-Type": "application/json"}, body)
            name = path.rpartition("/")[2]
            if name not in hub.files:
                return self.say(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            content = hub.files[name]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.say(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, body)
            if body:
                hub.sent[name] = hub.sent.get(name, 0) + 1

        def say(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            for start in range(0, len(content) if body else 0, BLOCK):
                time.sleep(hub.pause_s)
                self.wfile.write(content[start : start + BLOCK])

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):  # whoever measures the line hangs up in mid file
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
