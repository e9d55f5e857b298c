"""Secrets that can be recognised, planted into one home, and looked for in everything that it leaves behind."""

from __future__ import annotations

import json
import secrets
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from home import Home

# Where a secret belongs: its own file, and the books of the market that gave it.
ITS_PLACE = ("config/vast_api_key", "config/config.toml", "state/id_ed25519", "state/jobd.json", "market/ledger.sqlite")


class _Post(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing on standard error."""


@dataclass
class Canaries:
    """`values`: name -> secret. `watch` looks at the process list until `stop`."""

    one: Home
    values: dict[str, str]
    inbox: ThreadingHTTPServer
    seen: set[str] = field(default_factory=set)  # secrets in some process's command line
    looks: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def plant(cls, one: Home) -> Canaries:
        """Before the daemon starts."""
        made = {name: f"canary-{name}-{secrets.token_hex(12)}" for name in ("HF_TOKEN", "WANDB_API_KEY", "topic")}
        inbox = ThreadingHTTPServer(("127.0.0.1", 0), _Post)
        threading.Thread(target=inbox.serve_forever, daemon=True).start()
        for name in ("HF_TOKEN", "WANDB_API_KEY"):
            one.env[name] = made[name]
        config = one.folder / "config" / "config.toml"
        config.write_text(f'notify_url = "http://127.0.0.1:{inbox.server_port}/{made["topic"]}"\n{config.read_text()}')
        planted = cls(one, made | {"market key": one.said["api_key"]}, inbox)
        threading.Thread(target=planted._watch, daemon=True).start()
        return planted

    def _watch(self) -> None:
        while not self._stopped.wait(0.2):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                except OSError:  # it ended meanwhile
                    continue
                self.seen |= {name for name, value in self.values.items() if value in text}
            self.looks += 1

    def stop(self) -> None:
        self._stopped.set()
        self.inbox.shutdown()
        self.inbox.server_close()

    def found(self, job: str) -> list[str]:
        """'secret in place' for each that is where it does not belong. The home must have done its work."""
        key = (self.one.folder / "state" / "id_ed25519").read_text().splitlines()[1]
        secrets_of = self.values | {"SSH key": key}
        wrong = [f"{name} in a command line" for name in self.seen]
        bundle = self.one.folder / "bundle.zip"
        self.one.jobctl("report", job, "--to", str(bundle))
        for place, text in (*self._files(), *_members(bundle), ("journal", self._journal())):
            for name, value in secrets_of.items():
                if value.encode() in text and not (name == "topic" and place.endswith("run/job.json")):
                    wrong.append(f"{name} in {place}")  # the box tells the person too, so it knows the topic
        return wrong

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Logs, database, models, and the boxes' directories with all that a stage left there."""
        for path in self.one.folder.rglob("*"):
            place = str(path.relative_to(self.one.folder))
            if path.is_file() and not path.is_symlink() and not place.startswith(ITS_PLACE):
                yield place, path.read_bytes()

    def _journal(self) -> bytes:
        return json.dumps(self.one.journal("PUT") + self.one.journal("POST") + self.one.journal("GET")).encode()


def _members(bundle: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(bundle) as archive:
        for name in archive.namelist():
            yield f"bundle: {name}", archive.read(name)


def rows_in(bundle: Path, data: Path, least: int = 60) -> list[str]:
    """Excerpts of training rows that stand in the bundle."""
    everything = b"\n".join(text for _, text in _members(bundle)).decode("utf-8", "replace")
    texts = [text for line in data.read_text().splitlines() for text in json.loads(line).values()]
    long = [text[:least] for text in texts if isinstance(text, str) and len(text) >= least]
    return [text for text in long if text in everything]
