"""What `jobctl` ends with; `jobctl --help` prints this table."""

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NO_SUCH_JOB = 3
    NO_DAEMON = 4
    CREDENTIALS = 5
    NOTHING_FITS = 6
    TIMED_OUT = 7
    JOB_FAILED = 8
    JOB_ENDED = 9
    NOT_VERIFIED = 10
    ATTENTION = 11
    INTERRUPTED = 130


MEANING: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILED: "failed, or refused in this state",
    Exit.USAGE: "wrong usage, or the job file or its data is invalid",
    Exit.NO_SUCH_JOB: "no such job, or ambiguous",
    Exit.NO_DAEMON: "the daemon is not running",
    Exit.CREDENTIALS: "the market refuses the key",
    Exit.NOTHING_FITS: "nothing on the market fits",
    Exit.TIMED_OUT: "timed out waiting",
    Exit.JOB_FAILED: "the job failed",
    Exit.JOB_ENDED: "the job was cancelled or abandoned",
    Exit.NOT_VERIFIED: "verification failed; the machine is kept",
    Exit.ATTENTION: "something needs you: a job is held, a machine bills that should not, or the disk is full",
    Exit.INTERRUPTED: "interrupted; jobs go on",
}
