"""How every stage script begins and ends: read job.json, do the work, turn what went wrong into an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from remote_payload.contract import ContractError, Exit, JobFile, Stage
from remote_payload.layout import Layout, plan_of
from remote_payload.progress import Events
from remote_payload.ranks import conclude
from remote_payload.rows import Unsound


class ScriptFailed(Exception):
    """The stage cannot go on; `code` tells the daemon what kind of act follows, the message tells the person why."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


Body = Callable[[Layout, JobFile, Events], Exit]
LITTLE = 1 << 20  # bytes


def run(stage: Stage | None, body: Body) -> int:
    """Call `body` for the job under --root and return the exit code.

    `stage` None is a script outside the chain, or one that serves several stages and is told --stage.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--stage", type=Stage, default=stage)
    args = parser.parse_args()
    layout, stage = Layout(args.root.resolve()), args.stage
    events = Events(layout.events)
    try:
        job = layout.read_settled() if stage else layout.read_job()
        plan = plan_of(job, stage) if stage else None
        events = Events(layout.events, stage, plan.nonce if plan else None)
        return body(layout, job, events)
    except ScriptFailed as failure:
        return _report(events, failure.code, str(failure))
    except ContractError as error:
        return _report(events, Exit.BAD_CONFIG, str(error))
    except Unsound as error:
        return _report(events, Exit.BAD_DATA, str(error))
    except Exception as error:  # noqa: BLE001  # a script ends in an exit code, whatever happened
        code = Exit.OUT_OF_DISK if is_out_of_disk(error, layout.root) else Exit.INTERNAL
        with contextlib.suppress(OSError):  # the log may be on a full disk
            traceback.print_exc()
        return _report(events, code, f"{type(error).__name__}: {error}")


def is_out_of_disk(error: Exception, folder: Path) -> bool:
    """Whether `error` comes of a full disk. Libraries say so in words of their own, and torch says something else."""
    if isinstance(error, ScriptFailed):
        return False
    said = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
    return said or shutil.disk_usage(folder).free < LITTLE


def _report(events: Events, code: Exit, message: str) -> int:
    with contextlib.suppress(OSError):  # no room for words; the code needs none
        print(f"exit {code} ({code.name}): {message}", file=sys.stderr, flush=True)
        events.emit("error", code=int(code), msg=message)
    return conclude(code)
