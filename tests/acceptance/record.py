"""Makes the recording that the replay image plays: `python tests/acceptance/record.py`, a minute or two.

A real job, trained for real on the nano model, is kept on its box after it is verified; the box is then recorded and
the job let go. The result is committed as daemon/sandbox/recordings/nano.tar.gz and never edited.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from home import Home
from installed import ROOT, build_wheel, install

from daemon.cli.demo import quick_job

BOX_PYTHON = ROOT / ".venv-box/bin/python"
LONG_S = 900.0


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bin_folder = install(build_wheel(folder / "wheel"), folder / "venv")
        home = Home(folder / "home", bin_folder, "homeport/nano", BOX_PYTHON)
        home.open_market()
        home.start()
        try:
            spec = folder / "job"
            spec.mkdir()
            job_file = quick_job(spec, "full")
            job_file.write_text(job_file.read_text() + "destroy: ask\n")
            job = home.submit(job_file)
            home.reach(job, "HELD", within_s=LONG_S)
            (box,) = (folder / "home" / "market" / "instances").iterdir()
            subprocess.run(
                [sys.executable, "-m", "daemon.sandbox.recording", "--root", box / "homeport", "--python", BOX_PYTHON],
                check=True, cwd=ROOT,
            )  # fmt: skip
            home.jobctl("accept", job)
            home.reach(job, "DESTROYED")
        finally:
            home.close()


if __name__ == "__main__":
    main()
