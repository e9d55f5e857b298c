"""`jobctl`: one function a verb. Nothing is imported before a verb needs it: see jobctl.py."""

import io
import sys


def main() -> None:
    from daemon.cli.jobctl import jobctl

    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it was closed
        sys.stdout.reconfigure(errors="replace")  # a name that this terminal cannot show is no reason to say nothing
    jobctl(prog_name="jobctl")
