"""`Box.download` in a process that a test may kill: BOX_FOLDER PORT MANIFEST HOME DURABLE."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from boxes import SECRET, DurableFile

from daemon.box import download, lanes
from daemon.box.address import BoxAddress
from daemon.box.box import Box
from remote_payload import contract
from remote_payload.contract import Manifest


async def main(folder: Path, port: int, manifest: str, home: Path, durable: Path) -> None:
    endpoints = (("127.0.0.1", port),)
    box = Box(BoxAddress(7001, endpoints, None, SECRET, "homeport", sys.executable), folder / "id_ed25519")
    await box.prove()
    wanted = contract.load(Manifest, manifest)
    await box.download(wanted, home, DurableFile(durable), lambda progress: None)
    await box.aclose()


if __name__ == "__main__":
    download.COMMIT_S = 0.05  # so that a few megabytes see several commits
    lanes.LATE_S = 60.0  # a starved machine's blocks lag, and would be asked for twice
    folder, port, manifest, home, durable = sys.argv[1:]
    asyncio.run(main(Path(folder), int(port), Path(manifest).read_text(), Path(home), Path(durable)))
