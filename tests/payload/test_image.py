"""The sandbox's box image, and what bootstrap.sh adds to an image that lacks something."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import venv
import zipfile
from pathlib import Path

import pytest
from payload_box import REPOSITORY

from daemon.sandbox import image
from daemon.sandbox.models import nano_folder
from remote_payload import llama
from remote_payload.contract import Exit


@pytest.fixture
def image_folder(box_python: Path) -> Path:
    return box_python.parent.parent


def test_the_image_the_tests_run_with_is_current(image_folder: Path) -> None:
    """The stamp names the present requirements, and a second build returns at once, saying nothing."""
    said: list[str] = []
    assert image.image_problem(image_folder) is None

    built = image.build_image(image_folder, said.append)

    assert built.python == image_folder / "bin" / "python"
    assert built.without == ()
    assert said == []


def test_an_image_of_other_requirements_is_a_problem(tmp_path: Path) -> None:
    """A stamp of another recipe is not taken for this one, nor is an empty folder."""
    assert "holds no box image" in str(image.image_problem(tmp_path))

    (tmp_path / image.STAMP).write_text(json.dumps({"recipe": "older", "without": []}))

    assert "other requirements" in str(image.image_problem(tmp_path))


def test_without_a_compiler_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing compiles, llama-cpp-python is left out and the person told what that costs and what to install."""
    bare = tmp_path / "bare"
    venv.create(bare)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []

    without = image._compile(bare / "bin" / "python", ["llama-cpp-python==0"], said.append)

    assert without == ["llama-cpp-python==0"]
    assert "no C compiler" in said[0]
    assert "build-essential" in said[-1]


def test_the_committed_nano_is_small_and_whole() -> None:
    """The nano model is in the package: weights under 4 MB and everything a tokenizer needs."""
    files = {file.name: file.stat().st_size for file in nano_folder().iterdir()}

    assert files["model.safetensors"] < 4 << 20
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= files.keys()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image root with the payload uploaded to it."""
    root = tmp_path / "root"
    shutil.copytree(REPOSITORY / "remote_payload", root / "payload" / "remote_payload")
    return root


def bootstrap(root: Path, python: Path, *pins: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "payload/remote_payload/bootstrap.sh", python, *pins],
        cwd=root,
        env={"PATH": os.environ["PATH"], "HOME": str(root), **environment},
        capture_output=True,
        text=True,
    )


def test_bootstrap_leaves_a_complete_image_alone(root: Path, box_python: Path) -> None:
    """Nothing is missing, so the given interpreter is the one to use and nothing is made."""
    done = bootstrap(root, box_python)

    assert done.returncode == Exit.OK, done.stderr
    assert done.stdout.splitlines()[-1] == f"PYTHON={box_python}"
    assert [path.name for path in root.iterdir()] == ["payload"]


def test_bootstrap_adds_what_is_missing_over_the_images_torch(root: Path, box_python: Path, tmp_path: Path) -> None:
    """Missing requirements, the job's own too, go into ROOT/env over the image's own torch; llama-cpp-python does so in
    the background, for no processor in particular."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "absentee", "1.0")
    make_slow_source(wheels, "llama_cpp_python", "9.9", compiled := tmp_path / "compiled")
    make_wheel(wheels, "wanted", "2.0")
    requirements = root / "payload" / "remote_payload" / "requirements.txt"
    pinned = [line for line in requirements.read_text().splitlines() if not line.startswith("llama-cpp-python")]
    requirements.write_text("\n".join([*pinned, "absentee==1.0", "llama-cpp-python==9.9"]))
    shutil.copytree(box_python.parent.parent / "share" / "llama.cpp-converter", root / "converter")

    done = bootstrap(root, box_python, "wanted==2.0", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))

    assert done.returncode == Exit.OK, done.stderr
    python = root / "env/bin/python"
    assert done.stdout.splitlines()[-1] == f"PYTHON={python}"
    with pytest.raises(TimeoutError):  # bootstrap is over and training begins, the build goes on
        llama.wait_for_build(root, patience_s=0)
    compiled.touch()
    llama.wait_for_build(root)
    ask = "import absentee, wanted, torch; from importlib.metadata import version as v; "
    ask += "print(v('llama-cpp-python'), torch.__file__)"
    seen = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert seen.startswith(f"9.9 {box_python.parent.parent}")
    assert compiled.with_name("cmake").read_text() == "-DGGML_NATIVE=OFF"


def make_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel that holds one empty module of that name."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def make_slow_source(folder: Path, name: str, version: str, compiled: Path) -> None:
    """A source package that takes to build until the file `compiled` is there, ten minutes at most."""
    make_wheel(wheel := compiled.with_name("built"), name, version)
    backend = f"""
import os, pathlib, shutil, time
def build_wheel(folder, *_):
    pathlib.Path({str(compiled.with_name("cmake"))!r}).write_text(os.environ.get("CMAKE_ARGS", ""))
    for _ in range(6000):
        if pathlib.Path({str(compiled)!r}).exists():
            return pathlib.Path(shutil.copy(next(pathlib.Path({str(wheel)!r}).iterdir()), folder)).name
        time.sleep(0.1)
"""
    build = '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n'
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as source:
        for file, text in {"slow.py": backend, "pyproject.toml": build, "PKG-INFO": ""}.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{file}")
            entry.size = len(text.encode())
            source.addfile(entry, io.BytesIO(text.encode()))


def test_a_stage_waits_for_the_build_in_the_background(tmp_path: Path) -> None:
    """As long as something holds the build's lock, whoever needs llama-cpp-python waits, and no longer."""
    with open(tmp_path / llama.BUILD_LOCK, "w") as build:
        fcntl.flock(build, fcntl.LOCK_EX)
        waiting = threading.Thread(target=llama.wait_for_build, args=(tmp_path,))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()

    waiting.join(30)
    assert not waiting.is_alive()


def test_bootstrap_refuses_an_image_without_torch(root: Path) -> None:
    """torch is the image's to bring: an interpreter without it is unfit, 30."""
    done = bootstrap(root, Path(sys.executable))

    assert done.returncode == Exit.PREFLIGHT
    assert "has no torch" in done.stderr
