"""An S3 server on this machine (SeaweedFS), for tests that must talk to one.

with serving(top) as url: ...      a process with `environment(url)` reads and writes `s3://nst/...`
python tests/object_store.py TOP   serves alone, until Ctrl-C
"""

import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

BUCKET = "nst"
KEY, SECRET = "testsAlone", "thisSecretOpensTheServerOfTestsAlone"


def environment(url):
    """Of a process that reads and writes there; nothing of this process's own AWS settings passes."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    return kept | settings(url) | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


def settings(url):
    """What such a process has in its environment."""
    nowhere = os.devnull  # no profile of the machine's user
    files = {"AWS_CONFIG_FILE": nowhere, "AWS_SHARED_CREDENTIALS_FILE": nowhere, "AWS_EC2_METADATA_DISABLED": "true"}
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    return files | keys | {"AWS_ENDPOINT_URL": url}


@contextmanager
def serving(top):
    """The address of an S3 server with the bucket `nst`, whose files lie below `top`."""
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
    config = Path(top, "s3.json")
    config.write_text(json.dumps({"identities": [identity]}))
    Path(top, "data").mkdir()
    port, *others = _free_ports(8)
    names = [f"{part}.port{grpc}" for part in ("master", "volume", "filer") for grpc in ("", ".grpc")] + ["s3.port.grpc"]
    weed = Path(sysconfig.get_path("scripts"), "weed")
    command = [str(weed if weed.exists() else "weed"), "server", f"-dir={top}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}={other}" for name, other in zip(names, others, strict=True)]
    command += [
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={config}",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=40",
        *("-volume.preStopSeconds=0", "-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    with ExitStack() as stack:
        log = stack.enter_context(Path(top, "log").open("wb"))
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env={key: value for key, value in os.environ.items() if "PROXY" not in key.upper()}
        )
        stack.callback(server.wait)
        stack.callback(server.kill)
        url = f"http://127.0.0.1:{port}"
        _make_bucket(url, server, Path(top, "log"))
        yield url


def _make_bucket(url, server, log):
    import botocore.session
    from botocore.config import Config

    session = botocore.session.get_session()
    config = Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=10, proxies={})
    client = session.create_client(
        "s3", region_name="us-east-1", endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, config=config
    )
    ends = time.monotonic() + 90
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")  # a volume is there
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except Exception:
            if server.poll() is not None or time.monotonic() > ends:
                raise AssertionError(log.read_text(errors="replace")[-2000:]) from None
            time.sleep(0.3)


def _free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    with serving(sys.argv[1]) as address:
        print(" ".join(f"{name}={value}" for name, value in settings(address).items()), flush=True)
        time.sleep(10**9)
