"""Who may do what at the test Hub: users and their tokens, repositories that they may see or write to, keys of large files."""

import hashlib

from hub_git import Repository
from hub_http import RefusedError, Requests


class Access(Requests):
    """A user reads what is public or theirs and writes below their own name; a repository that one may not see is not there."""

    def _user(self):
        """(name, whether their token may write) or (None, False) for nobody."""
        given = self.headers.get("Authorization")
        if given is None:
            return None, False
        if (user := self.server.users.get(given.removeprefix("Bearer "))) is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    def _repository(self, kind, repo, write=False):
        """The repository, if the one who asks may see it (and write to it)."""
        user, may_write = self._user()
        repository = Repository(self.server.top / (kind or "models") / repo)
        owner = repo.split("/")[0]
        if ".." in repo.split("/") or not repository.exists() or ((repository.folder / "private").exists() and user != owner):
            raise RefusedError(404 if user else 401, "Repository not found" if user else "Invalid username or password.", "RepoNotFound")
        if write and user is None:
            raise RefusedError(401, "Invalid username or password.")
        if write and user != owner:
            raise RefusedError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        if write and not may_write:
            raise RefusedError(403, "Forbidden: you must use a write token to upload to a repository.")
        return repository

    def _commit(self, kind, repo, revision):
        """(repository, sha that the revision names)."""
        repository = self._repository(kind, repo)
        if (sha := repository.resolve(revision or "main")) is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, sha

    def whoami(self):
        user, may_write = self._user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        token = {"displayName": "tests", "role": "write" if may_write else "read"}
        self.json(
            {
                "type": "user",
                "id": user,
                "name": user,
                "fullname": user,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    def _key(self, method, place):
        """What makes an address of a large file good for one method without a token."""
        return hashlib.sha256(f"{self.server.secret} {method} {place}".encode()).hexdigest()[:32]

    def _large(self, method, kind, repo, sha256):
        place = f"/lfs/{kind}/{repo}/{sha256}"
        if self.headers.get("Authorization") is not None:
            raise RefusedError(400, "Only one auth mechanism allowed")
        if self.query.get("key") != [self._key(method, place)]:
            raise RefusedError(403, "SignatureDoesNotMatch")
        return Repository(self.server.top / kind / repo).large(sha256)
