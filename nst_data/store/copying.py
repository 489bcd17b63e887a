"""Copy files of a sealed version to another place, verifying each against its checksum."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from nst_data.store.files import hash_file
from nst_data.store.manifest import SealedFile


def copy_verified(path: Path, target: Path, sealed: SealedFile, linked: bool = False) -> bool:
    """Copy a sealed file and return whether the copy matches its checksum. `linked` makes a hard link if the file system can."""
    if not path.is_file():
        return False
    copy_file(path, target, linked)
    return hash_file(target) == sealed


def copy_file(path: Path, target: Path, linked: bool = False) -> None:
    """Copy a file, creating the target folder. Use `linked`, which tries a hard link, only for files that never change again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if linked:
        with suppress(OSError):  # another file system, or one without links
            os.link(path, target)
            return
    shutil.copyfile(path, target)
