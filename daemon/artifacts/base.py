"""The base model's identity as this computer knows it: config, tokenizer and chat template, never the weights.

It comes from the person's own folder or straight from the model hub, not by way of the rented machine, so a GGUF can be
held against it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from daemon import web
from daemon.errors import SpecError, WorkstationUnfit
from remote_payload.contract import write_whole
from remote_payload.reasoning import without_opening

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
REQUIRED = (CONFIG, TOKENIZER)
OPTIONAL = (TOKENIZER_CONFIG, CHAT_TEMPLATE)

COMMIT = re.compile("[0-9a-f]{40}")
MAX_BYTES = 128 << 20  # the largest tokenizer.json known is 33 MB
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class BaseIdentity:
    """The identity files in `folder`. `revision` is the commit they are of, None for a local folder.

    `without_opening`: the model comes home with a template that begins no answer with <think> (reasoning: none).
    """

    model: str
    folder: Path
    revision: str | None = None
    without_opening: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._read(CONFIG)

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        return self._read(TOKENIZER)

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        return self._read(TOKENIZER_CONFIG) if (self.folder / TOKENIZER_CONFIG).exists() else {}

    @cached_property
    def chat_template(self) -> str | None:
        """The template that must come home, None where the base model has none."""
        template = self._own_template()
        return without_opening(template) if template and self.without_opening else template

    def _own_template(self) -> str | None:
        """The base model's: its own file, else the default one in tokenizer_config.json."""
        own = self.folder / CHAT_TEMPLATE
        if own.exists():
            return own.read_text(encoding="utf-8")
        inner = self.tokenizer_config.get("chat_template")
        if isinstance(inner, list):
            return next((str(t["template"]) for t in inner if t.get("name") == "default"), None)
        return inner

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SpecError([f"{self.model}: {name} cannot be read: {error}"]) from error
        if not isinstance(value, dict):
            raise SpecError([f"{self.model}: {name} is not a JSON object"])
        return value


async def base_identity(
    model: str, revision: str | None, cache: Path, *, endpoint: str = "https://huggingface.co", token: str | None = None
) -> BaseIdentity:
    """The identity of `model`: a local folder as it is, a hub repository fetched once per commit into `cache`.

    Only an absolute path, or one that begins with ~, is a folder: any other is a hub id, whatever lies where we run.
    Raises SpecError for a folder or repository that is not a model we can check, WorkstationUnfit when the hub cannot
    be reached. The returned `revision` is the exact commit; the box must be told to use the same.
    """
    if local := _local_folder(model):
        return BaseIdentity(model, local)
    if revision and (known := _cached(model, revision, cache)):
        return known
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    root = f"{endpoint.rstrip('/')}/{quote(model)}/resolve"
    async with web.client(headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as hub:
        try:
            commit = await _commit(hub, model, f"{root}/{quote(revision or 'main', safe='')}/{CONFIG}")
            folder = _cache_folder(model, commit, cache)
            folder.mkdir(parents=True, exist_ok=True)
            for name in (*OPTIONAL, *REQUIRED):
                if not (folder / name).exists():
                    await _fetch(hub, f"{root}/{commit}/{name}", folder / name)
        except httpx.HTTPError as error:
            hint = "check the network, or give a local folder as model"
            raise WorkstationUnfit(f"{model}: the model hub does not answer: {error}", hint=hint) from error
    _require(model, folder)
    return BaseIdentity(model, folder, commit)


def _cache_folder(model: str, commit: str, cache: Path) -> Path:
    return cache / f"{model.replace('/', '--')}@{commit}"


def _cached(model: str, revision: str, cache: Path) -> BaseIdentity | None:
    """What an earlier call fetched at this commit: what was seen at submit can be verified without network."""
    folder = _cache_folder(model, revision, cache)
    whole = COMMIT.fullmatch(revision) and all((folder / name).is_file() for name in REQUIRED)
    return BaseIdentity(model, folder, revision) if whole else None


def _local_folder(model: str) -> Path | None:
    folder = Path(model).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        return None
    _require(model, folder)
    return folder.resolve()


async def _commit(hub: httpx.AsyncClient, model: str, url: str) -> str:
    """The commit behind the revision in `url`; the hub names it on the answer before any redirect."""
    reply = await hub.head(url, follow_redirects=False)
    while reply.is_redirect and "x-repo-commit" not in reply.headers and reply.next_request:
        reply = await hub.send(reply.next_request)
    if reply.status_code in (401, 403):
        raise SpecError([f"{model}: the model hub refuses access"], hint="set HF_TOKEN to a token that may read it")
    if reply.status_code == 404:
        raise SpecError([f"{model}: no such folder here, and no such model or revision on the hub"])
    commit = reply.headers.get("x-repo-commit", "")
    if not COMMIT.fullmatch(commit):
        raise WorkstationUnfit(f"{model}: the hub answered {reply.status_code} without naming a commit")
    return str(commit)


async def _fetch(hub: httpx.AsyncClient, url: str, path: Path) -> None:
    """Write `path` whole; a file the repository does not have is left out."""
    async with hub.stream("GET", url) as reply:
        if reply.status_code == 404:
            return
        reply.raise_for_status()
        body = bytearray()
        async for part in reply.aiter_bytes():
            body += part
            if len(body) > MAX_BYTES:
                raise SpecError([f"{url}: larger than {MAX_BYTES} bytes"])
    write_whole(path, body.decode("utf-8"))


def _require(model: str, folder: Path) -> None:
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise SpecError([f"{model}: {' and '.join(missing)} missing, so the finished model could not be checked"])
