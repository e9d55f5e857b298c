"""Where the base model's identity comes from: a local folder, or the hub over HTTP at one exact commit."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from daemon.artifacts.base import BaseIdentity, base_identity
from daemon.errors import SpecError, WorkstationUnfit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"model": {"vocab": {}}}',
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
}


class Hub(BaseHTTPRequestHandler):
    """The part of the model hub's HTTP interface that we use, with one public and one gated model."""

    asked: list[tuple[str, str]]

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(FILES.get(self.path.rsplit("/", 1)[1]))

    def answer(self, body: bytes | None) -> None:
        """404 for what is not there; a redirect first for `renamed`, as for models that moved."""
        self.asked.append((self.command, self.path))
        _, owner, model, *_ = self.path.split("/")
        if model == "gated" and self.headers["Authorization"] != "Bearer secret":
            return self.reply(401, b"")
        if model == "renamed":
            self.send_response(307)
            self.send_header("Location", self.path.replace("renamed", "real"))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if owner != "org" or model not in ("real", "gated") or body is None:
            return self.reply(404, b"")
        self.reply(200, body)

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 200:
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub on loopback."""
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """No network, no copy: the files are read where they lie."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")

    found = await base_identity(str(tmp_path), None, tmp_path / "cache", endpoint="http://127.0.0.1:1")

    assert (found.folder, found.revision) == (tmp_path, None)
    assert found.config == {"model_type": "llama"}
    assert found.chat_template == "{{ messages }}"


async def test_a_hub_id_is_no_folder_where_we_run(tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name in the daemon's working directory is somebody else's: the hub is asked."""
    (tmp_path / "org/real").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "org/real" / name).write_text('{"model_type": "another"}')
    monkeypatch.chdir(tmp_path)

    found = await base_identity("org/real", None, tmp_path / "cache", endpoint=hub)

    assert (found.revision, found.config) == (COMMIT, {"model_type": "llama"})


async def test_a_folder_in_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ names a place, wherever we run."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("HOME", str(tmp_path.parent))

    found = await base_identity(f"~/{tmp_path.name}", None, tmp_path / "cache", endpoint="http://127.0.0.1:1")

    assert found.folder == tmp_path


@pytest.mark.parametrize("model", ["org/real", "org/renamed"])
async def test_the_hub_is_asked_once_a_commit(tmp_path: Path, hub: str, model: str) -> None:
    """The revision is resolved to a commit, the files are fetched at it, and a second call fetches none again."""
    first = await base_identity(model, None, tmp_path, endpoint=hub)
    Hub.asked.clear()
    second = await base_identity(model, "main", tmp_path, endpoint=hub)

    assert first.revision == second.revision == COMMIT
    assert second.tokenizer_config == {"eos_token": "</s>"}
    assert second.chat_template is None
    assert not [path for method, path in Hub.asked if method == "GET" and not path.endswith(".jinja")]


async def test_a_pinned_commit_needs_no_network_again(tmp_path: Path, hub: str) -> None:
    """What was fetched at submit is enough to verify with, hub or no hub."""
    fetched = await base_identity("org/real", COMMIT, tmp_path, endpoint=hub)

    assert await base_identity("org/real", COMMIT, tmp_path, endpoint="http://127.0.0.1:1") == fetched


async def test_a_gated_model_needs_a_token(tmp_path: Path, hub: str) -> None:
    """Without a token the message says which setting to give; with it the files come."""
    with pytest.raises(SpecError, match="refuses access") as refused:
        await base_identity("org/gated", None, tmp_path, endpoint=hub)

    found = await base_identity("org/gated", None, tmp_path, endpoint=hub, token="secret")

    assert "HF_TOKEN" in refused.value.hint
    assert found.config["model_type"] == "llama"


async def test_an_unknown_model_is_an_error_in_the_job_file(tmp_path: Path, hub: str) -> None:
    """A misspelt model ends as a message about the spec, with nothing cached."""
    with pytest.raises(SpecError, match="org/unknown: no such folder here"):
        await base_identity("org/unknown", None, tmp_path / "cache", endpoint=hub)

    assert not (tmp_path / "cache").exists()


async def test_no_network_is_an_error_of_this_workstation(tmp_path: Path) -> None:
    """An unreachable hub is not the spec's fault."""
    with pytest.raises(WorkstationUnfit, match="does not answer"):
        await base_identity("org/real", None, tmp_path, endpoint="http://127.0.0.1:1")


async def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """What cannot be checked later is refused now, naming the missing file."""
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(SpecError, match=r"tokenizer\.json missing"):
        await base_identity(str(tmp_path), None, tmp_path)


TEMPLATES = [
    ({}, None),
    ({"chat_template": "one"}, "one"),
    ({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
]


@pytest.mark.parametrize(("settings", "template"), TEMPLATES)
def test_where_the_chat_template_is(tmp_path: Path, settings: dict[str, object], template: str | None) -> None:
    """Older models keep the template, or several by name, in tokenizer_config.json."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))

    assert BaseIdentity("m", tmp_path).chat_template == template
