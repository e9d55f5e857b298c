"""Making the box image again after something went wrong on the way."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

from daemon.sandbox import image


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Nothing is installed or fetched; the interpreters that were to do so."""
    asked: list[Path] = []

    def run(command: list[str | Path]) -> None:
        asked.append(Path(command[0]))

    monkeypatch.setattr(image, "_run", run)
    monkeypatch.setattr(image, "_compile", lambda *_: [])
    return asked


def test_interrupted_before_it_had_pip(tmp_path: Path, offline: list[Path]) -> None:
    """Ctrl-C in the first seconds leaves an interpreter without pip: the next call completes it."""
    folder = tmp_path / "image"
    venv.create(folder, with_pip=False)

    built = image.build_image(folder, lambda line: None)

    assert set(offline) == {built.python}
    subprocess.run([built.python, "-m", "pip", "--version"], check=True, capture_output=True)
    assert image.image_problem(folder) is None


def test_a_stamp_that_a_full_disk_cut_short(tmp_path: Path) -> None:
    """It names nothing, so there is no image yet, and no error of ours."""
    (tmp_path / image.STAMP).write_text("")

    assert "holds no box image" in str(image.image_problem(tmp_path))


def test_a_python_that_makes_no_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's comes without: the person is told so, and what to install."""

    def create(folder: Path, *, with_pip: bool) -> None:
        raise subprocess.CalledProcessError(1, ["python3", "-m", "ensurepip"], b"No module named ensurepip\n")

    monkeypatch.setattr(venv, "create", create)

    with pytest.raises(image.ImageFailed, match=r"(?s)No module named ensurepip.*apt install python3-venv"):
        image.build_image(tmp_path / "image", lambda line: None)
