"""Which interpreter stands for which box image, and how an image lays out a new disk.

``DIR/images.json`` maps image names (shell patterns) to interpreters; ``--image NAME=PYTHON`` adds to it. An image
whose name contains "replay" plays a recorded run instead of training (see `replay`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from shlex import quote

from . import recording, replay

FILE = "images.json"
REPLAYS = "replay"
ANY = "*"


@dataclass(frozen=True)
class Image:
    """An image: its name and the interpreter behind its ``bin/python``."""

    name: str
    python: str

    def install(self, home: Path) -> None:
        """Lay out `home` as this image's containers start."""
        wrapper = home / "bin" / "python"
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        if REPLAYS in self.name:
            tape = home / ".tape"
            recording.unpack(recording.RECORDING, tape)
            wrapper.write_text(self._player(wrapper, tape))
        else:
            wrapper.write_text(f'#!/bin/sh\nexec {quote(self.python)} "$@"\n')
        wrapper.chmod(0o755)

    def _player(self, wrapper: Path, tape: Path) -> str:
        """A launcher that plays what needs torch and runs all else; the payload starts its stages by it too."""
        played = "|".join(f"remote_payload.{module}" for module in replay.PLAYED)
        return (
            "#!/bin/sh\n"
            f"export HOMEPORT_PYTHON={quote(str(wrapper))}\n"
            f'export PYTHONPATH={quote(str(tape / "installed"))}"${{PYTHONPATH:+:$PYTHONPATH}}"\n'
            f'case "$2" in {played})\n'
            "    module=${2#remote_payload.}; shift 2\n"
            f'    exec {quote(self.python)} -P {quote(replay.__file__)} {quote(str(tape))} "$module" "$@" ;;\n'
            "esac\n"
            f'exec {quote(self.python)} "$@"\n'
        )


class Images:
    """The images this sandbox can start."""

    def __init__(self, pythons: dict[str, str]) -> None:
        self._pythons = pythons or {ANY: sys.executable}

    def find(self, name: str) -> Image | None:
        """The image called `name`, or None: the pull fails."""
        for pattern, python in self._pythons.items():
            if fnmatchcase(name, pattern):
                return Image(name, python)
        return None


def read(root: Path, added: dict[str, str]) -> Images:
    """The images of the sandbox directory `root`, with `added` remembered for the next start."""
    file = root / FILE
    pythons: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    if added:
        pythons = {**pythons, **added}
        file.write_text(json.dumps(pythons, indent=1))
    return Images(pythons)
