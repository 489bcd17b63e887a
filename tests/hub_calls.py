"""The calls that the test Hub answers: those of the Hub's clients with Xet off. Their names are what faults and answers go by."""

from hub_buckets import Buckets
from hub_reads import Reads
from hub_writes import Writes

_REPO = r"/api/(models|datasets)/([^/]+/[^/]+)"
_BUCKET = r"/api/buckets/([^/]+/[^/]+)"
_FILES = r"/(?:(datasets)/)?([^/]+/[^/]+)"
ROUTES = (  # call, method, path, function
    ("whoami", "GET", r"/api/whoami-v2", "whoami"),
    ("create", "POST", r"/api/repos/create", "create"),
    ("validate", "POST", r"/api/validate-yaml", "validate"),
    ("info", "GET", _REPO, "info"),
    ("revision", "GET", _REPO + r"/revision/([^/]+)", "info"),
    ("refs", "GET", _REPO + r"/refs", "refs"),
    ("commits", "GET", _REPO + r"/commits/([^/]+)", "commits"),
    ("tree", "GET", _REPO + r"/tree/([^/]+)(?:/(.*))?", "tree"),
    ("paths info", "POST", _REPO + r"/paths-info/([^/]+)", "paths_info"),
    ("preupload", "POST", _REPO + r"/preupload/([^/]+)", "preupload"),
    ("commit", "POST", _REPO + r"/commit/([^/]+)", "commit"),
    ("tag", "POST", _REPO + r"/tag/([^/]+)", "tag"),
    ("untag", "DELETE", _REPO + r"/tag/([^/]+)", "untag"),
    ("lfs batch", "POST", _FILES + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("lfs verify", "POST", _FILES + r"\.git/info/lfs/objects/verify", "lfs_verify"),
    ("lfs put", "PUT", r"/lfs/(models|datasets)/([^/]+/[^/]+)/([0-9a-f]{64})", "lfs_put"),
    ("lfs get", "GET", r"/lfs/(models|datasets)/([^/]+/[^/]+)/([0-9a-f]{64})", "lfs_get"),
    ("bucket", "GET", _BUCKET, "bucket_info"),
    ("bucket tree", "GET", _BUCKET + r"/tree(?:/([^/]+))?", "bucket_tree"),
    ("bucket resolve", "GET", r"/buckets/([^/]+/[^/]+)/resolve/(.+)", "bucket_resolve"),
    ("head", "HEAD", _FILES + r"/resolve/([^/]+)/(.+)", "resolve"),
    ("resolve", "GET", _FILES + r"/resolve/([^/]+)/(.+)", "resolve"),
)


class Calls(Buckets, Reads, Writes):
    """One function per route."""

    routes = ROUTES
