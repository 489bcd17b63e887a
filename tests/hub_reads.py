"""What the test Hub tells of a repository, and the files that it gives."""

import datetime
import io
import json
import os
from urllib.parse import parse_qs, quote

from hub_access import Access
from hub_card import metadata
from hub_http import RefusedError

_PAGE = 1000  # entries of a tree in one answer


class Reads(Access):
    """Calls that change nothing."""

    def info(self, kind, repo, revision=None):
        repository, sha = self._commit(kind, repo, revision)
        entries = repository.entries(sha)
        files = [entry for entry in entries.values() if not entry.is_folder]
        card = metadata(repository.get(entries["README.md"].oid)[1].decode(errors="replace"))[0] if "README.md" in entries else None
        blobs = self.query.get("blobs", [""])[0].lower() in ("1", "true")
        history = list(repository.history(sha))
        self.json(
            {
                "id": repo,
                "author": repo.split("/")[0],
                "sha": sha,
                "createdAt": _date(history[-1][2]),
                "lastModified": _date(history[0][2]),
                "private": (repository.folder / "private").exists(),
                "gated": "manual" if (repository.folder / "gated").exists() else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "cardData": card or {},
                "siblings": [{"rfilename": file.path} | (_sibling(file) if blobs else {}) for file in files],
            }
        )

    def refs(self, kind, repo):
        refs = self._repository(kind, repo).refs()
        folders = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/", "pullRequests": "refs/pr/"}
        found = {group: [ref for ref in refs if ref.startswith(above)] for group, above in folders.items()}
        self.json(
            {
                group: [{"name": ref.removeprefix(folders[group]), "ref": ref, "targetCommit": refs[ref]} for ref in names]
                for group, names in found.items()
            }
        )

    def commits(self, kind, repo, revision):
        repository, sha = self._commit(kind, repo, revision)
        self.json(
            [
                {
                    "id": one,
                    "title": message.split("\n")[0],
                    "message": message.partition("\n")[2].strip(),
                    "authors": [{"user": author}],
                    "date": _date(seconds),
                }
                for one, author, seconds, message in repository.history(sha)
            ]
        )

    def tree(self, kind, repo, revision, below):
        repository, sha = self._commit(kind, repo, revision)
        entries, above = repository.entries(sha), (below or "").rstrip("/")
        if above and not (above in entries and entries[above].is_folder):
            raise RefusedError(404, f"{above} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("1", "true")
        found = [entry for entry in entries.values() if _is_below(entry.path, above, recursive)]
        start = int(self.query.get("cursor", ["0"])[0])
        rest = "&".join(f"{key}={quote(value)}" for key, (value, *_) in self.query.items() if key != "cursor")
        more = f'<{self.server.url}{self.path.split("?")[0]}?{rest}&cursor={start + _PAGE}>; rel="next"'
        page = [self._entry_json(repository, sha, entry, self.query.get("expand", [""])[0]) for entry in found[start : start + _PAGE]]
        self.json(page, {"Link": more} if len(found) > start + _PAGE else {})

    def paths_info(self, kind, repo, revision):
        repository, sha = self._commit(kind, repo, revision)
        text = self.content().decode()
        asked = json.loads(text) if text.startswith("{") else parse_qs(text)
        entries = repository.entries(sha)
        expand = asked.get("expand") or [""]
        found = [entries[path] for path in dict.fromkeys(path.rstrip("/") for path in asked.get("paths", [])) if path in entries]
        self.json([self._entry_json(repository, sha, entry, expand if isinstance(expand, bool) else expand[0]) for entry in found])

    def _entry_json(self, repository, sha, entry, expand):
        """What the Hub says of a file or folder."""
        told = {"type": "directory" if entry.is_folder else "file", "path": entry.path, "oid": entry.oid, "size": entry.size}
        if entry.lfs:
            told["lfs"] = {"oid": entry.lfs, "size": entry.size, "pointerSize": entry.blob_size}
        if str(expand).lower() in ("1", "true"):
            same = None
            for one, _, seconds, message in repository.history(sha):  # back to the commit that last changed it
                there = repository.entries(one).get(entry.path)
                if there is None or there.oid != entry.oid:
                    break
                same = {"id": one, "title": message.split("\n")[0], "date": _date(seconds)}
            told["lastCommit"] = same
        return told

    def resolve(self, kind, repo, revision, path):
        repository, sha = self._commit(kind, repo, revision)
        if (repository.folder / "gated").exists():
            raise RefusedError(403, "Access to this resource is restricted", "GatedRepo")
        entry = repository.entries(sha).get(path)
        if entry is None or entry.is_folder:
            raise RefusedError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.lfs or entry.oid}"'}
        if entry.lfs is None:
            return self.send_range(io.BytesIO(repository.get(entry.oid)[1]), headers)
        # Large files come from another host, which has no business with the token.
        place = f"/lfs/{kind or 'models'}/{repo}/{entry.lfs}"
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.lfs}"'}
        location = f"http://localhost:{self.server.server_port}{place}?key={self._key('GET', place)}"
        return self.send(302, b"", headers | {"Location": location})

    def lfs_get(self, kind, repo, sha256):
        with open(self._large("GET", kind, repo, sha256), "rb") as file:
            self.send_range(file, {"ETag": f'"{sha256}"'})


def _date(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _sibling(entry):
    lfs = {"lfs": {"sha256": entry.lfs, "size": entry.size, "pointerSize": entry.blob_size}} if entry.lfs else {}
    return {"size": entry.size, "blobId": entry.oid} | lfs


def _is_below(path, top, recursive):
    parent = os.path.dirname(path)
    return parent == top or (recursive and (not top or parent.startswith(top + "/")))
