"""Every call that differs between operating systems, and nothing else.

Linux is what we run; the macOS and Windows branches follow their documentation and are type-checked, not run by us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any


def boot_seconds() -> float:
    """Seconds since boot, suspend included."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)  # goes on while asleep there
    return time.monotonic()  # Windows: GetTickCount64 counts sleep


def machine_id() -> str:
    """A stable name of this computer; two computers never share it.

    Its host name only where there is no better one: macOS takes that from the network it happens to be in.
    """
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # the host name is left
            command = ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
            said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
            if found := re.search(r'"IOPlatformUUID" = "([^"]+)"', said):
                return found[1]
    elif sys.platform == "win32":
        import winreg

        access = winreg.KEY_READ | winreg.KEY_WOW64_64KEY
        machine, name = winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography"
        with contextlib.suppress(OSError), winreg.OpenKey(machine, name, 0, access) as key:  # the host name is left
            return str(winreg.QueryValueEx(key, "MachineGuid")[0])
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        with contextlib.suppress(OSError):  # not every system has every file: the next is asked
            text = path.read_text().strip()
            if text:
                return text
    return f"host-{socket.gethostname()}"


def open_to_others(path: Path) -> bool:
    """Whether somebody but its owner may read, write or enter it. Windows keeps no such modes."""
    return sys.platform != "win32" and bool(path.stat().st_mode & 0o077)


def pread(fd: int, size: int, offset: int) -> bytes:
    if sys.platform == "win32":
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)
    return os.pread(fd, size, offset)


def pwrite(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        if sys.platform == "win32":
            os.lseek(fd, offset, os.SEEK_SET)
            done = os.write(fd, view)
        else:
            done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def sync_data(fd: int) -> None:
    """Put the file's data on the platter, or the nearest thing this system offers.

    This and the other two syncs raise an audit event of their own (PEP 578): whoever simulates a power cut has to know
    what had reached the platter.
    """
    sys.audit("homeport.sync", fd)
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # plain fsync stops at the drive's cache there
    elif sys.platform == "win32":
        os.fsync(fd)
    else:
        os.fdatasync(fd)


def sync_file(fd: int) -> None:
    if sys.platform == "darwin":
        sync_data(fd)
        return
    sys.audit("homeport.sync", fd)
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Windows has no such call."""
    if sys.platform == "win32":
        return
    sys.audit("homeport.sync_folder", str(folder))
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def preallocate(fd: int, size: int) -> None:
    """Reserve `size` bytes now, so that a full disk is found before the download and not at its end. Raises OSError."""
    if sys.platform == "linux":
        os.posix_fallocate(fd, 0, size)
    elif os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)


def free_bytes(folder: Path) -> int:
    """What this user may still write there, root also what is set aside for it; 0 where the disk is read-only."""
    if sys.platform == "win32":
        return shutil.disk_usage(folder).free
    found = os.statvfs(folder)
    if found.f_flag & os.ST_RDONLY:
        return 0
    return found.f_frsize * (found.f_bavail if os.geteuid() else found.f_bfree)


def drop_cache(fd: int) -> None:
    """Ask for the next read to come from the disk."""
    if sys.platform == "linux":
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_ahead(fd: int, offset: int, size: int) -> None:
    """Tell the system that these bytes are wanted next; it fetches them while we work."""
    if sys.platform == "linux":
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)


def bytes_written(path: Path) -> int | None:
    """Bytes of a file that lie in no hole, None where the system does not say: finds sparse files of the right length.

    Not what it takes on the disk: that is less where the disk compresses, and nothing where it keeps no account.
    """
    if sys.platform != "win32":
        count = end = 0
        with open(path, "rb") as file:
            try:
                while True:
                    start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                    end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                    count += end - start
            except OSError as error:  # there is no more data, or the file system cannot say
                return count if error.errno == errno.ENXIO else None
    return None


def lock_file(file: IO[Any]) -> bool:
    """Take the exclusive lock of `file` for this process's life; False when another process holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, which is the answer
        return False
    return True


def lock_holder(file: IO[str]) -> str:
    """The process id that a lock file names, or 'unknown'."""
    file.seek(0)
    said = file.read(32).strip()
    return said if said.isdecimal() else "unknown"


def unix_socket_fits(path: Path) -> bool:
    """Whether a unix socket can lie at `path`: not on Windows, and not beyond the 104 bytes (with NUL) of macOS."""
    return sys.platform != "win32" and len(os.fsencode(path)) < 104


def listen_unix(path: Path) -> socket.socket:
    """A listening unix socket that only this user may open: 0600 from its first moment, not after a chmod."""
    if sys.platform == "win32":
        raise OSError("no unix sockets on Windows")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(128)
    return listener


def connect_unix(path: Path, timeout_s: float) -> socket.socket:
    if sys.platform == "win32":
        raise OSError("no unix sockets on Windows")
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout_s)
        connected.connect(str(path))
    except OSError:
        connected.close()
        raise
    return connected


def filesystem(path: Path) -> str:
    """What kind of file system `path` lies on ('ext4', 'nfs4', 'apfs'); '' where this system does not say."""
    import psutil

    mounts = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    resolved = path.resolve()
    return next((mounts[folder] for folder in (resolved, *resolved.parents) if folder in mounts), "")


def memory_available() -> int:
    """Bytes of memory that can be used without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def new_group() -> dict[str, Any]:
    """Popen arguments that give the child a group of its own, so that it can be ended whole."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def end_group(pid: int) -> None:
    """End the process that began a group of its own, and whatever is in that group; none left is no error."""
    if sys.platform == "win32":
        with contextlib.suppress(OSError):  # it has ended already, for which Windows has no narrower error
            os.kill(pid, signal.SIGTERM)  # which ends it at once, there
    else:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.killpg(pid, signal.SIGKILL)


def user_name() -> str:
    """Under which the environment or the system knows this user; by number where neither does, as in a container."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # before Python 3.13, and from there on
        return f"uid {user_id()}"


def user_id() -> int:
    if sys.platform == "win32":
        raise OSError("no numeric user ids on Windows")
    return os.getuid()


def notify_socket() -> socket.socket:
    """An unbound datagram socket for the service manager, which never waits."""
    if sys.platform == "win32":
        raise OSError("no unix sockets on Windows")
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    out.setblocking(False)
    return out


def outward_addresses() -> frozenset[str]:
    """Our own addresses towards the world, as the routes of this moment have them; none while there is no network.

    Connecting a UDP socket asks the routing table and sends nothing; the targets are addresses for documentation.
    """
    found = set()
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:  # no route: no address
            probe.connect((target, 9))
            found.add(str(probe.getsockname()[0]))
    return frozenset(found)


# What runs while the computer must not fall asleep; `cat` ends with our end of its pipe, however we end.
_STAY_AWAKE: dict[str, tuple[str, ...]] = {
    "linux": ("systemd-inhibit", "--what=sleep:idle", "--who=homeport", "--why={why}", "cat"),
    "darwin": ("caffeinate", "-i", "cat"),
}
_ENDS_WITHIN_S = 2.0  # the daemon waits for it, and does nothing else meanwhile
_ES_CONTINUOUS, _ES_SYSTEM_REQUIRED = 0x80000000, 0x00000001


class KeptAwake:
    """Keeps this computer from falling asleep by itself until `end`, or until this process ends."""

    def __init__(self, why: str) -> None:
        """Raises OSError where the system's tool is missing."""
        self._child: subprocess.Popen[bytes] | None = None
        if sys.platform == "win32":
            import ctypes

            ctypes.windll.kernel32.SetThreadExecutionState(_ES_CONTINUOUS | _ES_SYSTEM_REQUIRED)
            return
        if sys.platform not in _STAY_AWAKE:
            raise OSError(f"no way known to keep {sys.platform} awake")
        command = [word.format(why=why) for word in _STAY_AWAKE[sys.platform]]
        quiet = subprocess.DEVNULL
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)

    @property
    def holds(self) -> bool:
        """Whether the system agreed: its tool ends at once when it is refused."""
        return self._child is None or self._child.poll() is None

    def end(self) -> None:
        if sys.platform == "win32":
            import ctypes

            ctypes.windll.kernel32.SetThreadExecutionState(_ES_CONTINUOUS)
        if self._child is not None:
            if self._child.stdin is not None:
                self._child.stdin.close()
            try:
                self._child.wait(_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:  # it still asks a service that hangs: we do not wait for that
                self._child.kill()
                self._child.wait()
