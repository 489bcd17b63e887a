"""Cached facts about images that are slow to determine: in a folder, and shared with other machines if the store is at an address."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nst_data.errors import NstError
from nst_data.store.file_tree import FileTree, MissingFileError
from nst_data.store.files import clear_abandoned

INDEXES_FOLDER = "runs/indexes"
_unusable_addresses: set[str] = set()  # addresses that this process could not read or write
_shared_files: set[tuple[str, str]] = set()  # (address, name) of files that are known to be there


@dataclass(frozen=True)
class Indexes:
    """Cached files whose names identify their content, such as by a digest: at an address, a name means the same content for everybody.

    The files are in `folder`. `tree` is the tree of a store at an address, where they are shared below `INDEXES_FOLDER`; if it cannot be
    read or written, each machine computes its own.
    """

    folder: Path
    tree: FileTree | None = None

    @classmethod
    def coerce(cls, value: "Self | Path | None") -> Self | None:
        """The indexes in a folder; `Indexes` and None are returned unchanged."""
        return cls(value) if isinstance(value, Path) else value

    @property
    def alone(self) -> "Indexes":
        """The indexes of this machine only."""
        return Indexes(self.folder)

    def find(self, name: str) -> Path | None:
        """The path of a file on this machine, downloaded if only the address has it; None if neither has it."""
        path = self.folder / name
        if self.tree is not None and self.tree.address not in _unusable_addresses and not path.exists():
            try:
                self.tree.download(f"{INDEXES_FOLDER}/{name}", path)
                _shared_files.add((self.tree.address, name))
            except (MissingFileError, OSError):
                pass
            except NstError:
                _unusable_addresses.add(self.tree.address)
        return path if path.exists() else None

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file by calling `write`, and share it. If the folder cannot be written to, nothing is kept."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_abandoned(self.folder)
            write(self.folder / name)
            self.share(name, name)

    def share(self, name: str, shared_name: str) -> None:
        """Upload a file of this machine under a name that identifies its content, unless the address has it."""
        if self.tree is None or self.tree.address in _unusable_addresses or (self.tree.address, shared_name) in _shared_files:
            return
        try:
            if self.tree.stat(f"{INDEXES_FOLDER}/{shared_name}") is None:
                self.tree.upload(self.folder / name, f"{INDEXES_FOLDER}/{shared_name}")
            _shared_files.add((self.tree.address, shared_name))
        except OSError:  # no longer on this machine
            pass
        except NstError:  # many commands need only read access
            _unusable_addresses.add(self.tree.address)
