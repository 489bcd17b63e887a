import pytest
from pictures import keys, png, read_contents, write_files
from wording import mentions

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source


def test_a_list_is_read_in_the_order_of_its_lines(tmp_path):
    write_files(tmp_path, "a.png", "sub/b.png", "c without suffix")
    write_files(tmp_path / "other", "d.png")
    (tmp_path / "pool.txt").write_text(f"sub/b.png\n\n  \na.png\r\n{tmp_path}/other/d.png\nsub/b.png\nc without suffix")
    source = open_source(str(tmp_path / "pool.txt"))
    assert keys(source) == ["sub/b.png", "a.png", f"{tmp_path}/other/d.png", "sub/b.png", "c without suffix"]
    assert read_contents(source) == [png(0, 1), png(0, 0), png(0, 0), png(0, 1), png(0, 2)]
    assert source.rows_of(["sub/b.png"]).tolist() == [0]


def test_a_missing_file_is_a_row_with_its_error(tmp_path):
    write_files(tmp_path, "a.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "pool.txt").write_text("gone.png\na.png\nfolder.png\n")
    source = open_source(str(tmp_path / "pool.txt"))
    gone, there, folder = read_contents(source)
    assert gone.startswith("FileNotFoundError: ")
    assert there == png(0, 0)
    assert folder.startswith("IsADirectoryError: ")
    assert source.listing()["bytes"].to_pylist() == [0, len(png(0, 0)), 0]
    (line,) = source.remarks()
    assert mentions(
        line, f"pool.txt: 2 of its image files … the first: {tmp_path}/gone.png; relative paths start at … or correct the paths"
    )


def test_a_byte_order_mark_is_no_part_of_the_first_path(tmp_path):
    write_files(tmp_path, "é.png")
    (tmp_path / "pool.TXT").write_text("é.png\n", encoding="utf-8-sig")
    assert keys(open_source(str(tmp_path / "pool.TXT"))) == ["é.png"]


def test_a_list_holds_no_labels(tmp_path):
    (tmp_path / "pool.txt").write_text("a.png\n")
    with pytest.raises(UsageError, match=r"pool\.txt:.*no labels.*class folders.*CSV.*`path` and `label`"):
        open_source(str(tmp_path / "pool.txt"), labeled=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"pool\.txt:.*path.*each line, found none"),
        (b"\n \n", r"pool\.txt:.*path.*each line, found none"),
        (b"caf\xe9.png\n", "expected a text file in UTF-8"),
        (b"a.png\nb\0.png\n", "line 2 is not a path"),
    ],
)
def test_a_file_that_is_no_list_is_an_error(tmp_path, content, message):
    (tmp_path / "pool.txt").write_bytes(content)
    with pytest.raises(NstError, match=message):
        open_source(str(tmp_path / "pool.txt"))
