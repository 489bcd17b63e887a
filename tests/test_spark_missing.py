"""Without PySpark, without Java, or without a master, `--engine spark` ends in one clear line."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nst_data.errors import NstError, UsageError
from nst_data.tables.engines import scan
from nst_data.tables.spark import _check_reachable


def test_spark_that_is_not_installed_is_a_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    for name in [name for name in sys.modules if name.startswith("pyspark.")]:
        monkeypatch.delitem(sys.modules, name)
    expected = r"^`engine` spark: expected pyspark, found none; pip install pyspark, or leave out `engine`$"
    with pytest.raises(UsageError, match=expected):
        scan([Path("labels.parquet")], {}, "spark")


def test_java_that_is_not_there_is_a_line_that_says_so(tmp_path):
    code = "from pathlib import Path; from nst_data.tables.engines import scan; scan([Path('labels.parquet')], {}, 'spark')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"JAVA_HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == (
        "nst_data.errors.NstError: `engine` spark: Spark did not start ([JAVA_GATEWAY_EXITED] Java gateway process exited before "
        "sending its port number.); it needs Java 17 (JAVA_HOME) and a `master` that answers"
    )


@pytest.mark.parametrize("master", ["spark://127.0.0.1:{}", "spark://localhost:{},127.0.0.1:{}", "spark://[::1]:{}"])
def test_a_master_that_does_not_answer_is_a_line_at_once(master):
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        master = master.replace("{}", str(nobody.getsockname()[1]))
        with pytest.raises(NstError, match=rf"^`master` {re.escape(master)}: it does not answer \(.+\); start it, or correct its host and"):
            scan([Path("labels.parquet")], {}, "spark", master)


def test_of_several_masters_one_that_answers_is_enough():
    with socket.create_server(("127.0.0.1", 0)) as standby:
        _check_reachable(f"spark://127.0.0.1:1,127.0.0.1:{standby.getsockname()[1]}")
