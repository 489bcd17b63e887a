"""Features under way: whose claims forbid their removal, and how large they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nst_data.errors import NstError
from nst_data.features.kept import StoredFeatures
from nst_data.store.files import PID_NAMESPACE
from nst_data.tables import shards


def test_a_living_process_of_this_machine_keeps_its_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "STALLED_SECONDS", 0.0)
    (tmp_path / "claims").mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        claim = tmp_path / "claims" / f"00000.{PID_NAMESPACE}.{child.pid}"
        claim.write_text("0")
        with pytest.raises(NstError, match=f"process {child.pid} .*stop it first"):
            shards.wait_for_claims(tmp_path, "features@0123", lambda _: None)
        os.utime(claim, (1, 1))  # older than the process: of an earlier one with its id
        shards.wait_for_claims(tmp_path, "features@0123", lambda _: None)
        child.kill()


def test_sizes_pass_over_what_vanishes_meanwhile(tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "shards" / "b").write_bytes(b"12")
    walk = os.walk

    def vanishing(folder):
        for at, folders, names in walk(folder):
            yield at, folders, [*names, "gone"]

    monkeypatch.setattr(os, "walk", vanishing)
    assert StoredFeatures(tmp_path).bytes == 7
