"""Files that only grow."""

from __future__ import annotations

import os

from .disk import check_file_target, converted, fsync_directory, resolve


class AppendedFile:
    """A file that only grows, such as a log; what was written before may be cut off once, when it is opened.

    Args:
        path: The file; its folder must exist.
        length: Bytes of an existing file that are kept. Default 0: it begins anew.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], length: int = 0) -> None:
        self._target = resolve(path)
        check_file_target(self._target)
        with converted(self._target):
            known = self._target.exists()
            self._fd = os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                os.ftruncate(self._fd, length)
                if not known:
                    fsync_directory(self._target.parent)
            except OSError:
                os.close(self._fd)
                raise

    def write(self, data: bytes) -> None:
        """Append bytes; they have left the process when this returns.

        Raises:
            OutputError: They cannot be written; a part of them may be.
        """
        with converted(self._target):
            while data:
                data = data[os.write(self._fd, data) :]

    def sync(self) -> int:
        """Bring what was written to the disk; returns the length of the file in bytes."""
        with converted(self._target):
            os.fsync(self._fd)
            return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
