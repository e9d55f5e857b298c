"""Secrets that can be recognised, planted into one home, and looked for in everything that it leaves behind."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from home import Home

SEED = 4  # the line of a private key that has most of its seed; the first are alike in every key, or public
MARKET = ("market/ledger.sqlite",)  # the books of the market, which gave it
# Where each secret belongs, by how the places begin; the others belong nowhere in the home.
ITS_PLACE: dict[str, tuple[str, ...]] = {
    "market key": ("config/vast_api_key", *MARKET),
    "topic": ("config/config.toml",),
    "SSH key": ("state/id_ed25519",),
    "API token": ("state/jobd.json",),
    # What made the box, and the market's reply to the create, which is stored as it came.
    "instance key": (*MARKET, "market/boxes/", "state/homeport.db", "state/backups/"),
}


class _Post(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing on standard error."""


@dataclass
class Canaries:
    """`values`: name -> secret, those that are made on the way as well. The process list is looked at until `stop`."""

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
            self._learn()
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                except OSError:  # it ended meanwhile
                    continue
                self.seen |= {name for name, value in self.values.items() if value in text}
            self.looks += 1

    def _learn(self) -> None:
        """The secrets that daemon and market make: the SSH key, the token of a loopback port, the machine's own key."""
        state = self.one.folder / "state"
        if (key := state / "id_ed25519").exists() and len(lines := key.read_text().splitlines()) > SEED:
            self.values["SSH key"] = lines[SEED]
        if (address := state / "jobd.json").exists() and (text := address.read_text()):
            self.values["API token"] = json.loads(text)["token"]
        with closing(sqlite3.connect(f"file:{self.one.folder}/market/ledger.sqlite?mode=ro", uri=True)) as ledger:
            for (record,) in ledger.execute("SELECT record FROM instances"):
                self.values["instance key"] = json.loads(record)["api_key"]

    def stop(self) -> None:
        self._stopped.set()
        self.inbox.shutdown()
        self.inbox.server_close()

    def found(self, job: str) -> list[str]:
        """'secret in place' for each that is where it does not belong. The home must have done its work."""
        wrong = [f"{name} in a command line" for name in self.seen]
        bundle = self.one.folder / "bundle.zip"
        bundle.unlink(missing_ok=True)  # a report replaces nothing
        self.one.jobctl("report", job, "--to", str(bundle))
        for place, text in (*self._files(), *_members(bundle), ("journal", self._journal())):
            for name, value in self.values.items():
                if value.encode() in text and not _belongs(name, place):
                    wrong.append(f"{name} in {place}")
        return wrong

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Logs, database, models, and the boxes' directories with all that a stage left there."""
        for path in self.one.folder.rglob("*"):
            place = str(path.relative_to(self.one.folder))
            if path.is_file() and not path.is_symlink():
                yield place, path.read_bytes()

    def _journal(self) -> bytes:
        methods = ("GET", "POST", "PUT", "PATCH", "DELETE")
        return json.dumps([request for method in methods for request in self.one.journal(method)]).encode()


def _belongs(name: str, place: str) -> bool:
    """The box tells the person too, so it knows the topic."""
    return place.startswith(ITS_PLACE.get(name, ())) or (name == "topic" and place.endswith("run/job.json"))


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
