"""`jobctl`: one function a verb. Nothing is imported before a verb needs it: see jobctl.py."""


def main() -> None:
    from daemon.cli.jobctl import jobctl

    jobctl(prog_name="jobctl")
