"""`nst` commands in a process that takes the test Hub for the Hub (see hub.py), as one of its users."""

import json
import subprocess
import sys
from dataclasses import dataclass

from hub import USERS, environment

RUN_EACH = """
import json, sys, warnings
from typer.testing import CliRunner
from nst_cli.main import app

done = []
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    done.append([result.exit_code, result.stdout, result.stderr])
print(json.dumps(done))
"""


@dataclass(frozen=True)
class CommandResult:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def value(self):
        """What --json printed."""
        return json.loads(self.out)


def nst(url, home, *commands, token=None, **extra):
    """Run commands, one after the other, in one process with the store `home`/store; no token may be seen in what they say."""
    wanted = [[str(word) for word in command] for command in commands]
    variables = environment(url, home / "hf", token) | {"NST_STORE": str(home / "store"), "OMP_NUM_THREADS": "1"} | extra
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", RUN_EACH, json.dumps(wanted)],
        env=variables,
        capture_output=True,
        text=True,
        cwd=home,
    )
    assert not any(secret in done.stdout + done.stderr for secret in USERS)
    assert done.returncode == 0, done.stderr[-3000:]
    return [CommandResult(*one) for one in json.loads(done.stdout.splitlines()[-1])]
