"""The installed `remote_payload` package brought to the box, under the hash of its content.

`payload` is a link to `payload-<hash>`: a box that already has this version is told in one command, and a half-unpacked
one is never run.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from pathlib import Path

import remote_payload
from daemon.box.contact import Contact
from remote_payload.contract import PAYLOAD_DIR

# Arguments: archive, its sha256, folder to make. Any Python 3 runs it.
_UNPACKER = """
import hashlib, os, shutil, sys, tarfile
archive, sha256, folder = sys.argv[1:]
content = open(archive, "rb").read()
if hashlib.sha256(content).hexdigest() != sha256:
    sys.exit("the payload arrived damaged")
fresh = folder + ".new"
shutil.rmtree(fresh, ignore_errors=True)
with tarfile.open(archive) as tar:
    tar.extractall(fresh)
if not os.path.isdir(folder):
    os.rename(fresh, folder)
os.remove(archive)
"""


async def upload_payload(contact: Contact) -> None:
    """Have `payload/remote_payload` be ours. May be called any number of times; raises RemoteFailed, LinkLost."""
    archive = packed()
    sha256 = hashlib.sha256(archive).hexdigest()
    folder = f"{PAYLOAD_DIR}-{sha256[:16]}"
    link = f"ln -sfn {folder} {PAYLOAD_DIR}"
    known = await contact.shell(f"[ -d {folder} ] && {link}", accept=(0, 1))
    if known.code == 0:
        return
    name = f"{folder}.tar"
    await contact.write_whole(name, archive)
    unpack = shlex.join([contact.address.python, "-c", _UNPACKER, name, sha256, folder])
    await contact.shell(f"{unpack} && {link}")


def packed() -> bytes:
    """The package as a tar whose bytes depend on file names and contents alone."""
    package = Path(remote_payload.__file__).parent
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                entry = tarfile.TarInfo(f"{package.name}/{path.relative_to(package).as_posix()}")
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
