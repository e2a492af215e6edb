"""The one way in which the kit writes files: whole or not at all, and never over what it did not make."""

import errno
import hashlib
import os
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import VitvizError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_OWNER_BYTES = 1000  # of a lock file; Windows locks the byte behind them, so that others can read who holds it


def check_target(path: Path, ours: Callable[[Path], bool] | None = None, force: bool = False) -> None:
    """VitvizError if ``write`` would refuse ``path``: to be asked before long work, too.

    Args:
        ours: says whether the file that exists is the kit's own and may be replaced; if it fails, it is not.
    """
    try:  # asked once: another process may remove the file between two questions
        is_file = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # there is none, or none that can be seen
        return
    if not is_file:
        raise VitvizError(f"{path} is not a file that can be replaced; name another.")
    if ours and not force:
        with suppress(Exception):
            if ours(path):
                return
        raise VitvizError(f"{path} exists, and is nothing that this command made; name another, or say --force (in Python "
                          f"force=True) to replace it.")


def write(path: Path, content: bytes | str, *, ours: Callable[[Path], bool] | None = None, force: bool = False,
          mode: int = 0o666) -> Path:
    """Write a file (text as UTF-8) and its folder: a temporary file beside it, fsync, rename. See ``check_target``.

    ``mode`` is that of a new file, less the umask: 0o600 for what only its owner may read, from its first byte on.

    Raises:
        VitvizError: a foreign file at ``path``, a full disk, a folder that cannot be written. What was there is unchanged.
    """
    check_target(path, ours, force)
    target = Path(os.path.realpath(path))  # what a symbolic link points to is replaced, not the link
    partial = target.with_name(f".{target.name[:80]}.{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
                file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):  # a new file
                os.chmod(partial, target.stat().st_mode & 0o777)
            os.replace(partial, target)
        finally:
            with suppress(OSError):
                partial.unlink()
    except OSError as error:
        raise VitvizError(f"{path} cannot be written ({error.strerror or error}); free some space, or name another folder that "
                          f"you may write to.") from None
    return path


def tidy(folder: Path, older: float = 3600.0) -> None:
    """Remove temporary files of at least ``older`` seconds that killed processes left; the owner of a lock may pass 0."""
    for partial in folder.glob(".*.????????.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime >= older:
                partial.unlink()


def ready(folder: Path, name: str) -> Path:
    """Make a folder and prove that files can be written in it; VitvizError, calling it ``name``, if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise VitvizError(f"{name} {folder} cannot be written ({error.strerror}); name a folder that you may write to.") from None


@contextmanager
def locked(folder: Path, what: str, wait: float = 5.0) -> Iterator[None]:
    """Hold a folder for this thread of this process; the system frees it when the process ends, in whatever way.

    ``what`` is done meanwhile, as others shall read it: "making an atlas". VitvizError: another owner, named with its process,
    machine and command, still holds it after ``wait`` seconds.
    """
    path, end = ready(folder, "The folder") / ".vitviz.lock", time.monotonic() + wait
    while (handle := _try_lock(path)) is None:
        if time.monotonic() >= end:
            owner = path.read_text("utf-8", "replace").strip() if path.exists() else ""
            raise VitvizError(f"{folder} is in use ({owner or 'by another process'}); wait until that has ended, or name another "
                              f"folder.")
        time.sleep(0.05)
    owner = f"{what}; process {os.getpid()} on {socket.gethostname()}; {os.path.basename(sys.argv[0])} {' '.join(sys.argv[1:])}"
    try:
        with suppress(OSError):  # a full disk: the lock is held, only nameless
            os.write(handle, owner.encode("utf-8", "replace")[:_OWNER_BYTES])
        yield
    finally:
        with suppress(OSError):  # removed while it is held: who waits sees that the file is another, and tries again
            path.unlink()
        os.close(handle)


def _try_lock(path: Path) -> int | None:
    """An open handle that holds the lock file, or None if another does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(handle, _OWNER_BYTES, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            os.ftruncate(handle, 0)
            return handle
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system without locks: nobody is kept out
            return handle
    os.close(handle)  # held by another, or removed by one that had it
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
