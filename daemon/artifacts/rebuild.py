"""GGUF files made on this computer, by the very scripts that make them on the machine, in processes of their own.

    <models>/.rebuild/payload/remote_payload          link to the installed payload: all that the interpreter is given
    <models>/.rebuild/converter/                      llama.cpp's, where the interpreter does not bring it
    <models>/.rebuild/base/<model>@<commit>/model/    weights of a hub model, kept for the next job
    <models>/.rebuild/jobs/<job>/<nonce>/             laid out as a machine's root; its files appear in run/out

The adapter is the only thing in it that came from a machine: safetensors and JSON, neither of which runs. What is made
of it is proven by nobody here; see box/download.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio import StreamReader
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import remote_payload
from remote_payload.contract import (
    MAX_JSON_BYTES,
    ArtifactFile,
    ContractError,
    JobFile,
    Prepared,
    dump,
    load,
    write_whole,
)
from remote_payload.layout import Layout, final_adapter

INSTALL = "pip install 'homeport[box]', or name the interpreter that has it as box_python in config.toml"
ANSWER_S = 60.0
# Nothing secret: what an interpreter, the package index and the hub may need to be found.
KEPT = (
    *("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "PIP_INDEX_URL", "PIP_CONFIG_FILE"),
    *(name for proxy in ("http_proxy", "https_proxy", "no_proxy") for name in (proxy, proxy.upper())),
)


class RebuildFailed(Exception):
    """Nothing was made; the message is the script's last word."""


@dataclass(frozen=True)
class Workshop:
    """`python` has the `[box]` extra, `folder` is `<models>/.rebuild`. Every method may be called again."""

    python: Path
    folder: Path

    async def problem(self) -> str:
        """Why nothing can be rebuilt on this computer; '' when it can."""
        if sys.platform != "linux":
            return "files are rebuilt on Linux only"
        lacking = await self.lacking()
        return f"{lacking} ({INSTALL})" if lacking else ""

    async def lacking(self) -> str:
        """What stands in the interpreter's way, and INSTALL mends; '' for nothing."""
        if not self.python.exists():
            return f"{self.python} is not there"
        try:
            async with asyncio.timeout(ANSWER_S):
                told = await self._run("rebuild", "--lacking")
        except TimeoutError:  # which has no words of its own
            return f"{self.python} did not say within {ANSWER_S:g} s which packages it has"
        except (RebuildFailed, OSError) as error:
            return f"{self.python} cannot be asked for its packages: {error}"
        return f"{self.python} lacks {', '.join(told)}" if told else ""

    def base_root(self, model: str, revision: str) -> Path:
        return self.folder / "base" / f"{model.replace('/', '--')}@{revision}"

    async def fetch_base(self, model: str, revision: str, hub: Mapping[str, str]) -> Path:
        """The folder with all of a hub model, fetched as the machine does. `hub`: variables that it is reached with."""
        root = self.base_root(model, revision)
        root.mkdir(parents=True, exist_ok=True)
        await self._run("fetch", "--root", str(root), "--repo", model, "--revision", revision, env=hub)
        return Layout(root).model

    async def fetch_converter(self) -> None:
        """Raises RebuildFailed where the package index does not bring it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        await self._run("converter", "--root", str(self.folder))

    def lay_out(self, job: JobFile, prepared: Prepared, model: Path, adapter: Path) -> Path:
        """A fresh root for the job's files: `adapter` is that of its last training stage. Others of the job go."""
        self.forget(job.job)
        root = Layout(self._of(job.job) / job.stages[-1].nonce)
        final_adapter(root, job).parent.mkdir(parents=True)
        final_adapter(root, job).symlink_to(adapter)
        root.model.symlink_to(model)
        if (fetched := self.folder / "converter").exists():
            (root.root / "converter").symlink_to(fetched)
        write_whole(root.run / "job.json", dump(job))
        write_whole(root.prepared, dump(prepared))
        return root.root

    async def build(self, root: Path, tell: Callable[[ArtifactFile], None]) -> None:
        """Make the files of a root laid out before, telling of each that is whole. Raises RebuildFailed."""
        offline = {"HF_HUB_OFFLINE": "1"}
        try:
            await self._run("rebuild", "--root", str(root), env=offline, on_line=lambda t: tell(load(ArtifactFile, t)))
        except ContractError as error:
            raise RebuildFailed(str(error)) from error

    def forget(self, job: str) -> None:
        """What was made for the job makes room. Raises OSError."""
        if self._of(job).exists():
            shutil.rmtree(self._of(job))

    def _of(self, job: str) -> Path:
        return self.folder / "jobs" / job

    def _payload(self) -> Path:
        """What PYTHONPATH names: the payload and nothing beside it, so that no package of ours shadows one there."""
        link = self.folder / "payload" / "remote_payload"
        link.parent.mkdir(parents=True, exist_ok=True)
        beside = link.with_name(f".{link.name}.{os.getpid()}")
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path(remote_payload.__file__).parent)
        beside.replace(link)
        return link.parent

    async def _run(
        self,
        script: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> list[str]:
        """The lines that a script of the payload printed. Raises RebuildFailed.

        Cancelled, it leaves no process behind. Killed, neither: rebuild.py ends with its standard input, and the others
        end by themselves.
        """
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            str(self.python),
            "-m",
            f"remote_payload.{script}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=kept | dict(env or {}) | {"PYTHONPATH": str(self._payload()), "PYTHONDONTWRITEBYTECODE": "1"},
            limit=MAX_JSON_BYTES,
        )
        output, errors = cast(StreamReader, process.stdout), cast(StreamReader, process.stderr)
        words = asyncio.create_task(_last_words(errors))
        lines: list[str] = []
        try:
            async for raw in output:
                lines.append(raw.decode("utf-8", "replace").rstrip("\n"))
                on_line(lines[-1])
            code, said = await process.wait(), await words
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            words.cancel()
        if code:
            raise RebuildFailed(f"{script} ended with code {code}: {said}")
        return lines


async def _last_words(stream: StreamReader) -> str:
    """The last line that says something, printable."""
    end = b""
    while block := await stream.read(1 << 16):
        end = (end + block)[-4096:]
    lines = end.decode("utf-8", "replace").strip().splitlines() or ["nothing on standard error"]
    return "".join(c for c in lines[-1] if c.isprintable())[-300:]
