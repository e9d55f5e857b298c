"""The wheel that would ship, built and installed into an environment of its own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_wheel(to: Path) -> Path:
    """The wheel of this checkout."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(to), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = to.glob("*.whl")
    return wheel


def install(wheel: Path, to: Path) -> Path:
    """An environment with nothing of ours but `wheel`; its dependencies are those of the test environment. Its bin."""
    python = to / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(to)], check=True)
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    # A folder named in a .pth is searched, but its own .pth files are not read: the editable checkout stays invisible.
    Path(found.stdout.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return to / "bin"


def digest(wheel: Path) -> str:
    return hashlib.sha256(wheel.read_bytes()).hexdigest()
