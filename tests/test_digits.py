import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nst_data.digits import write_digits
from nst_data.sources import open_source


def test_the_digits_fall_into_100_labeled_500_for_the_test_and_the_rest(tmp_path):
    write_digits(tmp_path / "digits", seed=0)
    labeled, test = (open_source(str(tmp_path / "digits" / part), labeled=True) for part in ("labeled", "test"))
    pool = open_source(str(tmp_path / "digits" / "pool"))
    assert (len(labeled), len(test), len(pool)) == (100, 500, 1197)
    assert np.bincount(labeled.labels).tolist() == [10] * 10
    names = [source.key(row).rpartition("/")[2] for source in (labeled, test, pool) for row in range(len(source))]
    assert len(set(names)) == 1797
    with Image.open(tmp_path / "digits" / "pool" / pool.key(0)) as image:
        assert (image.size, image.mode) == ((8, 8), "L")


def test_the_split_is_a_matter_of_the_seed(tmp_path):
    def names(folder, seed):
        write_digits(tmp_path / folder, seed)
        return hashlib.sha256(repr(sorted(path.name for path in (tmp_path / folder / "pool").iterdir())).encode()).hexdigest()

    assert names("a", 0) == names("b", 0)
    assert names("a", 0) != names("c", 1)


@pytest.mark.slow
def test_the_demo_ends_with_a_second_student_better_than_its_teacher_and_than_the_control(tmp_path):
    command = [sys.executable, "-c", "from nst_cli.main import run; run()", "demo", "--store", str(tmp_path / "store"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    teacher, _, second, control = (row["test_top1"] for row in json.loads(done.stdout)["generations"])
    assert second >= teacher + 0.01
    assert second > control
