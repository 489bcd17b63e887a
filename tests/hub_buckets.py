"""Buckets of the test Hub: plain files below TOP/buckets/OWNER/NAME, which nothing but the file system writes.

A bucket is private where there is a file TOP/buckets/OWNER/NAME.private. What a file holds has no Xet hash here; another one stands for it.
"""

import hashlib

from hub_access import Access
from hub_http import RefusedError

_DATE = "2026-01-01T00:00:00.000Z"


class Buckets(Access):
    """Calls that change nothing."""

    def bucket_info(self, bucket):
        sizes = [path.stat().st_size for path in self._files(bucket).values()]
        told = {"id": bucket, "private": self._mark(bucket).exists(), "createdAt": _DATE, "size": sum(sizes), "totalFiles": len(sizes)}
        self.json(told)

    def bucket_tree(self, bucket, prefix):
        """As the Hub does, also of what merely begins like the folder."""
        prefix = prefix or ""
        is_recursive = self.query.get("recursive", [""])[0].lower() in ("1", "true")
        start = f"{prefix}/" if prefix else ""
        told = {}
        for name, path in self._files(bucket).items():
            folder, _, below = name.removeprefix(start).partition("/")
            if not name.startswith(prefix):
                continue
            if below and name.startswith(start) and not is_recursive:
                told[start + folder] = {"type": "directory", "path": start + folder, "uploadedAt": _DATE}
                continue
            content = path.read_bytes()
            told[name] = {"type": "file", "path": name, "size": len(content), "xetHash": hashlib.sha256(content).hexdigest()}
            told[name] |= {"mtime": _DATE, "uploadedAt": _DATE}
        self.json(list(told.values()))

    def bucket_resolve(self, bucket, name):
        if (path := self._files(bucket).get(name)) is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        with path.open("rb") as file:
            self.send_range(file, {})

    def _mark(self, bucket):
        return self.server.top / "buckets" / f"{bucket}.private"

    def _files(self, bucket):
        """{name: path} of a bucket that the one who asks may see."""
        user, _ = self._user()
        folder = self.server.top / "buckets" / bucket
        if not folder.is_dir() or (self._mark(bucket).exists() and user != bucket.split("/")[0]):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
