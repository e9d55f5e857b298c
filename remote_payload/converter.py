"""Where llama.cpp's converter is on this machine, fetching it when it is nowhere.

The converter is the pure-Python part of llama.cpp that llama-cpp-python 0.3.36 carries, so that the box writes GGUF
with the very commit the workstation reads it with. It is never copied into this project: it comes from the release's
source archive, pinned by its sha256, and what was extracted is pinned by a hash over the tree. Standard library only.

    python -m remote_payload.converter --root .      print the converter's folder, fetching it into ROOT/converter
    python converter.py --into DIR                   fetch it into DIR (used to build a box image)
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urldefrag, urljoin

PROJECT = "llama-cpp-python"
VERSION = "0.3.36"
SDIST = f"llama_cpp_python-{VERSION}.tar.gz"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
TREE_SHA256 = "4e53043e64ec5e93116eb97e6ec926f14f172b10d54f43a4db61276c1f9853d7"
INSIDE_SDIST = PurePosixPath(f"llama_cpp_python-{VERSION}/vendor/llama.cpp")
WANTED = ("LICENSE", "convert_hf_to_gguf.py", "conversion/", "gguf-py/LICENSE", "gguf-py/gguf/")

IN_IMAGE = Path(sys.prefix) / "share" / "llama.cpp-converter"
FOLDER = "converter"  # contract.CONVERTER_DIR: under the root, when the image does not bring it
UNFIT = 30  # contract.Exit.PREFLIGHT; this file also runs alone, so it imports nothing of the package
TIMEOUT_S = 600
MAX_TREE_BYTES = 64 << 20  # the wanted part is 4 MB


class ConverterUnavailable(Exception):
    """The converter is not here and could not be fetched, or what was fetched is not the pinned release."""


def locate(root: Path) -> Path:
    """The folder of a whole converter: the image's, else ROOT/converter, fetched if need be.

    Raises ConverterUnavailable. Safe to call twice: a folder that does not match the pinned hash is replaced.
    """
    found = find(root)
    if found is None:
        fetch(root / FOLDER)
        found = root / FOLDER
    return found


def find(root: Path) -> Path | None:
    """The converter already on this machine, or None."""
    return next((folder for folder in (IN_IMAGE, root / FOLDER) if is_whole(folder)), None)


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds exactly the pinned files."""
    return folder.is_dir() and tree_sha256(folder) == TREE_SHA256


def tree_sha256(folder: Path) -> str:
    """One hash over every file's relative path and bytes; compiled caches are not part of the tree."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256}\n".encode())
    return digest.hexdigest()


def fetch(folder: Path) -> None:
    """Put the converter into `folder`, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converter-") as scratch:
        sdist = Path(scratch) / SDIST
        _download(sdist)
        with open(sdist, "rb") as f:
            seen = hashlib.file_digest(f, "sha256").hexdigest()
        if seen != SDIST_SHA256:
            raise ConverterUnavailable(f"{SDIST}: sha256 is {seen}, not the pinned {SDIST_SHA256}")
        tree = Path(scratch) / "tree"
        _extract(sdist, tree)
        if not is_whole(tree):
            raise ConverterUnavailable(f"the converter in {SDIST} hashes to {tree_sha256(tree)}, not to {TREE_SHA256}")
        shutil.rmtree(folder, ignore_errors=True)
        tree.rename(folder)


def _download(sdist: Path) -> None:
    """The package index first; pip as the second way, since it knows private indexes and local wheel folders."""
    try:
        # Whatever scheme the index has (https, or file for a mirror): what arrives must hash to the pinned sha256.
        with urllib.request.urlopen(_sdist_url(), timeout=TIMEOUT_S) as reply, open(sdist, "wb") as f:  # noqa: S310
            shutil.copyfileobj(reply, f, 1 << 20)
    except (OSError, ConverterUnavailable) as error:
        print(f"converter: {error}; asking pip instead", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PROJECT]
        run = subprocess.run([*command, "--dest", str(sdist.parent), f"{PROJECT}=={VERSION}"], timeout=TIMEOUT_S)
        if run.returncode or not sdist.is_file():
            raise ConverterUnavailable(f"{SDIST} could not be fetched from the package index") from error


def _sdist_url() -> str:
    """The archive's address on pip's configured index, from its simple page (HTML, PEP 503)."""
    page = f"{_index_url().rstrip('/')}/{PROJECT}/"
    request = urllib.request.Request(page, headers={"Accept": "text/html"})  # noqa: S310  # as above
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        links = re.findall(r'href="([^"]+)"', reply.read(64 << 20).decode())
    for link in links:
        url, _ = urldefrag(urljoin(page, html.unescape(link)))
        if url.endswith(f"/{SDIST}"):
            return url
    raise ConverterUnavailable(f"{page} does not list {SDIST}")


def _index_url() -> str:
    if configured := os.environ.get("PIP_INDEX_URL"):
        return configured
    ask = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(ask, capture_output=True, text=True).stdout.strip() or "https://pypi.org/simple"


def _extract(sdist: Path, tree: Path) -> None:
    """Write the wanted regular files of the archive under `tree`; links and odd paths are refused."""
    total = 0
    with tarfile.open(sdist) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if not path.is_relative_to(INSIDE_SDIST):
                continue
            inner = path.relative_to(INSIDE_SDIST)
            if not inner.as_posix().startswith(WANTED) or member.isdir():
                continue
            total += member.size
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or ".." in inner.parts or total > MAX_TREE_BYTES:
                raise ConverterUnavailable(f"{SDIST}: unexpected entry {member.name}")
            target = tree / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--root", type=Path, default=Path())
    where.add_argument("--into", type=Path)
    args = parser.parse_args()
    try:
        if args.into is None:
            folder = locate(args.root)
        else:
            folder = args.into
            if not is_whole(folder):
                fetch(folder)
    except ConverterUnavailable as error:
        print(f"converter: {error}", file=sys.stderr)
        return UNFIT
    print(json.dumps({"converter": str(folder.resolve())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
