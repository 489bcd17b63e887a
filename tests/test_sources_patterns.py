import pytest
from pictures import keys, png, write_table, write_tar

from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.sources.patterns import expand_braces


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{a,b}.tar", ["a.tar", "b.tar"]),
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("x-{000..2}.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..1}{a,b}", ["0a", "0b", "1a", "1b"]),
        ("{a,b{1..2}}", ["a", "b1", "a", "b2"]),
        ("{,x}y", ["y", "xy"]),
        ("{a} {} {1..} {a..c}", ["{a} {} {1..} {a..c}"]),
    ],
)
def test_braces_are_expanded(pattern, names):
    assert list(expand_braces(pattern)) == names


def test_braces_name_tar_files_in_order(tmp_path):
    for index in range(8, 12):
        write_tar(tmp_path / f"pool-{index:03d}.tar", [("x.png", png(0, index))])
    source = open_source(str(tmp_path / "pool-{008..010}.tar"))
    assert keys(source) == ["pool-008.tar:x.png", "pool-009.tar:x.png", "pool-010.tar:x.png"]
    assert source.read(2) == png(0, 10)


def test_a_name_in_braces_without_a_file_is_an_error(tmp_path):
    write_tar(tmp_path / "0.tar", [("x.png", png(0))])
    with pytest.raises(NstError, match=r"\{0\.\.2\}\.tar: .*1\.tar: no such file"):
        open_source(str(tmp_path / "{0..2}.tar"))


def test_braces_and_stars_go_together_and_no_file_is_read_twice(tmp_path):
    write_table(tmp_path / "a" / "x.parquet", image=[png(0)])
    write_table(tmp_path / "b" / "y.parquet", image=[png(1)])
    assert keys(open_source(str(tmp_path / "{a,b,[ab]}" / "*.parquet"))) == ["a/x.parquet:0", "b/y.parquet:0"]


def test_keys_are_relative_to_the_folder_that_all_files_share(tmp_path):
    for name in ("b.parquet", "a/x.parquet"):
        write_table(tmp_path / name, image=[png(0), png(1)])
    assert keys(open_source(str(tmp_path / "**" / "*.parquet"))) == ["a/x.parquet:0", "a/x.parquet:1", "b.parquet:0", "b.parquet:1"]


def test_a_pattern_without_files_is_an_error(tmp_path):
    with pytest.raises(NstError, match=r"/\*\.parquet:.*no file matches"):
        open_source(str(tmp_path / "*.parquet"))


def test_hidden_files_of_a_folder_are_left_out(tmp_path):
    write_table(tmp_path / "a.parquet", image=[png(0)])
    write_table(tmp_path / ".cache" / "b.parquet", image=[png(0)])
    assert keys(open_source(str(tmp_path))) == ["a.parquet:0"]
