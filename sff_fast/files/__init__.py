"""Files that are either complete or not there: the one place of the package that writes to disk.

A file is written to a temporary file in the same folder, flushed to the disk (``fsync``) and renamed over its target;
then the folder itself is flushed. A crash, a full disk or a power cut leaves the old file, or the new one, never half of
one. A folder is filled under a temporary name and renamed when it is complete; an older folder is swapped with it by one
atomic exchange (``renameat2`` on Linux). Where the file system has no exchange, the old folder is renamed aside first and
the new one takes its place after that: a crash between the two renames leaves both complete, and
:func:`check_output_directory` puts the old one back. Written for POSIX systems.
"""

from .appended import AppendedFile
from .atomic import atomic_directory, atomic_write, begin_writeback, copy_file
from .folders import make_directory, remove
from .hashing import sha256
from .json_text import read_json, write_json
from .output import check_output_directory, claimed_directory
from .temporaries import remove_abandoned
from .tensors import safetensors_order, save_safetensors

__all__ = [
    "AppendedFile",
    "atomic_directory",
    "atomic_write",
    "begin_writeback",
    "check_output_directory",
    "claimed_directory",
    "copy_file",
    "make_directory",
    "read_json",
    "remove",
    "remove_abandoned",
    "safetensors_order",
    "save_safetensors",
    "sha256",
    "write_json",
]
