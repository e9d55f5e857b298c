"""The fence around a child process that opens a file we do not trust with C code: what it may use, see and reach.

| part | what it takes away | where |
|---|---|---|
| limits | memory, CPU time, core dumps, growing any file, more than 64 open files | Linux, macOS |
| namespaces | the network, every right of the user beyond its own files, the system's IPC | Linux that allows them |
| landlock | every file but the model, Python and the libraries; TCP; signals to others | Linux 5.13 and later |

On Linux the child also ends with the process that started it, so that a killed daemon leaves none behind.

Each part is put up where the system has it; `Fence.standing` says which stood before the child ran a line, and the
report of L5 keeps it. Sources: man pages landlock(7), unshare(2), setrlimit(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMITS, NAMESPACES, LANDLOCK = "limits", "namespaces", "landlock"

# What Python and shared libraries are loaded from, beside the interpreter's own folders; and where the processor is
# described. /proc as a whole would show the environment of other processes.
LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/nix/store")
MACHINE = ("/sys/devices/system/cpu", "/proc/cpuinfo", "/proc/meminfo", "/dev/null", "/dev/urandom")
WRITABLE = "/dev/null"

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every 64-bit architecture
VERSION_FLAG, PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by the first ABI that has them
NO_NEW_PRIVS, END_WITH_PARENT = 38, 1  # options of prctl
NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000  # user, network, IPC


@dataclass
class Fence:
    """`close_behind` runs in the child between fork and exec; None where the system has nothing to offer."""

    close_behind: Callable[[], None] | None
    said: int  # the end of the pipe on which the child says what stands
    ours: list[int]  # descriptors of this process that are not needed once the child runs

    def standing(self) -> tuple[str, ...]:
        """Which parts stood. To be asked once, after the child was started."""
        while self.ours:
            os.close(self.ours.pop())
        return tuple(os.read(self.said, 256).decode().split()) if self.close_behind else ()


@contextmanager
def fence(memory_bytes: int, cpu_seconds: int, readable: Iterable[Path]) -> Iterator[Fence]:
    """For one child, which may read `readable` and nothing else of the person's."""
    said, say = os.pipe()
    found = Fence(None, said, [say])
    try:
        if sys.platform != "win32":
            found.close_behind = _closing(found, say, memory_bytes, cpu_seconds, readable)
        yield found
    finally:
        for descriptor in (*found.ours, said):
            os.close(descriptor)


def _closing(
    found: Fence, say: int, memory_bytes: int, cpu_seconds: int, readable: Iterable[Path]
) -> Callable[[], None]:
    """Everything is looked up and opened here: after a fork as little as possible may go wrong."""
    libc = ctypes.CDLL(None, use_errno=True)
    rules = _landlock(libc, readable) if sys.platform == "linux" else None
    if rules is not None:
        found.ours.append(rules)

    def close_behind() -> None:
        if sys.platform != "win32":
            os.setsid()
        _limit(memory_bytes, cpu_seconds)
        standing = [LIMITS]
        if rules is not None:
            libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
            if libc.syscall(RESTRICT_SELF, rules, 0) == 0:
                standing.append(LANDLOCK)
        if sys.platform == "linux" and libc.unshare(NEW_NAMESPACES) == 0:
            standing.append(NAMESPACES)
        if sys.platform == "linux":
            libc.prctl(END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)  # last: new credentials would undo it
        os.write(say, " ".join(standing).encode())

    return close_behind


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    if sys.platform != "win32":
        import resource

        if sys.platform == "linux":  # macOS refuses RLIMIT_AS
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _landlock(libc: ctypes.CDLL, readable: Iterable[Path]) -> int | None:
    """A ruleset's descriptor, None where the kernel has no Landlock. Nothing is restricted by making it."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)
    if version < 1:
        return None
    files = FILE_RIGHTS[max(known for known in FILE_RIGHTS if known <= version)]
    network = 0b11 if version >= 4 else 0  # TCP: bind, connect
    scopes = 0b11 if version >= 6 else 0  # abstract sockets and signals beyond this process
    handled = struct.pack("=QQQ", files, network, scopes)
    rules = int(libc.syscall(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0))
    if rules < 0:
        return None
    prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path)
    for path in (*map(Path, (*LIBRARIES, *prefixes, *MACHINE)), *readable):
        _allow(libc, rules, path)
    return rules


def _allow(libc: ctypes.CDLL, rules: int, path: Path) -> None:
    """Let what lies at or under `path` be read and run; a path that is not there is left out."""
    if sys.platform != "linux" or not path.is_absolute() or not path.exists():
        return
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = READ_FILE | EXECUTE | (READ_DIR if path.is_dir() else 0)
        rights |= WRITE_FILE if path == Path(WRITABLE) else 0
        libc.syscall(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)
