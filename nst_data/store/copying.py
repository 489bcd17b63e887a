"""Copy files of a sealed version to another place, verifying each against its checksum."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from nst_data.store.files import hash_file
from nst_data.store.manifest import SealedFile


def copy_verified(path: Path, target: Path, sealed: SealedFile, hard_link: bool = False) -> bool:
    """Copy a sealed file and return whether the copy matches its checksum. `hard_link` makes a hard link if the file system can."""
    if not path.is_file():
        return False
    copy_file(path, target, hard_link)
    return hash_file(target) == sealed


def copy_file(path: Path, target: Path, hard_link: bool = False) -> None:
    """Copy a file, creating the target folder. Use `hard_link`, which tries a hard link, only for files that never change again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if hard_link:
        with suppress(OSError):  # another file system, or one without links
            os.link(path, target)
            return
    shutil.copyfile(path, target)
