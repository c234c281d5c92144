"""Writing a file as a whole: readers find the old content or the new one, whenever they look and whoever else writes."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # each use asks

TRIES = 50 if os.name == "nt" else 1  # of a rename: Windows refuses it while a reader has the file open


def write(path: str | os.PathLike[str], content: bytes | Iterable[Any], durable: bool = False) -> None:
    """Replace the file at `path`, or make it. A process killed at any moment leaves the whole old file or the whole new one.

    content: bytes, or pieces of memory to write one after another. durable: wait until the disk has it, so that a power failure
    loses nothing either. Raises OSError, which names the path and the repair; the old file is then as it was, and nothing else
    is left.

    The content goes to a temporary file beside the target, of this call alone, which is then renamed. So several processes and
    threads may write to one path, and the last one wins. The next writer removes what killed ones left (not on Windows).
    A file keeps its mode and, where the system permits it, its owner and group; a new one gets the usual mode. A link stays, and
    its target is replaced. Other hard links to the file keep the old content. A device or a pipe is written directly.
    """
    target = check_place(path)
    pieces: Iterable[Any] = (content,) if isinstance(content, bytes) else content
    try:
        if os.path.exists(target) and not os.path.isfile(target):
            with open(target, "wb") as stream:
                stream.writelines(pieces)
            return
        remove_abandoned(target)
        replace(target, pieces, durable)
    except OSError as error:
        why = f"cannot write {path}: {error.strerror or error}; free space there, or choose another place"
        raise OSError(error.errno or errno.EIO, why) from error


def check_place(path: str | os.PathLike[str]) -> Path:
    """The path of a file to write, links resolved. Raises OSError if no file can be written there."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        return Path(path)  # a device or a pipe; that of /dev/stdout has no path of its own
    target = Path(os.path.realpath(path))
    if len(os.fsencode(target.name)) > 255:
        raise OSError(errno.ENAMETOOLONG, f"cannot write {path}: its name is too long; choose one of at most 255 bytes")
    if os.path.islink(target):
        raise OSError(errno.ELOOP, f"cannot write {path}: its links lead in a circle; remove one of them")
    if os.path.isdir(target):
        raise IsADirectoryError(f"cannot write {path}: it is a folder; name a file in it")
    if not os.path.isdir(target.parent):
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}; make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {path}: you may make no file in {target.parent}; choose another folder")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise PermissionError(f"cannot write {path}: the file is read-only; make it writable, or choose another name")
    return target


def replace(target: Path, pieces: Iterable[Any], durable: bool) -> None:
    """Write the pieces to a temporary file, and rename it to `target`."""
    temporary, file = locked(target)
    try:
        with file:
            file.writelines(pieces)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if fcntl is not None:  # the lock lasts until the file has its name
                rename(temporary, target)
        if fcntl is None:  # Windows renames no open file
            rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if durable and os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def locked(target: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file beside `target`, with its mode and owner. It is locked while it is open: its writer lives."""
    old = os.stat(target) if os.path.exists(target) else None
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode)
    while True:
        temporary = target.with_name(f"{prefix(target)}{os.urandom(8).hex()}.tmp")
        file = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115  the caller closes it
        try:
            if old is not None and os.name == "posix":
                # last the mode: a change of owner resets some bits, and the umask has cut some
                for change, *values in ((os.chown, -1, old.st_gid), (os.chown, old.st_uid, -1), (os.chmod, mode)):
                    with suppress(OSError):  # only root gives files away, and not every file system has modes
                        change(file.fileno(), *values)
            if lock(file) and temporary.exists():
                return temporary, file
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        file.close()  # before it was locked, another writer took it for abandoned: again


def lock(file: BinaryIO) -> bool:
    """Lock an open file until it is closed, or its process ends. False if somebody else has the lock."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks, where `remove_abandoned` removes nothing
            pass
    return True


def remove_abandoned(target: Path) -> None:
    """Remove the temporary files of `target` whose writers were killed: those that nobody has locked."""
    if fcntl is None:
        return
    name = re.compile(re.escape(prefix(target)) + r"[0-9a-f]{16}\.tmp")
    with os.scandir(target.parent) as entries:
        found = [entry.path for entry in entries if name.fullmatch(entry.name)]
    for path in found:
        with suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def prefix(target: Path) -> str:
    """The beginning of the names of the target's temporary files; short, since a name has at most 255 bytes."""
    return f".{target.name[:50]}."


def rename(temporary: Path, target: Path) -> None:
    """Rename, and wait a second where a reader is in the way."""
    for tries_left in reversed(range(TRIES)):
        try:
            os.replace(temporary, target)
        except PermissionError:
            if not tries_left:
                raise
            time.sleep(0.02)
        else:
            return
