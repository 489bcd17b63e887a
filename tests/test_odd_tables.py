import pytest
from odd_tables import TABLES

from nst_data.errors import NstError
from nst_data.sources import open_source


def read(row):
    """An image, or why there is none."""
    try:
        return bytes(row())
    except (OSError, NstError) as error:
        return str(error)


def matches(actual, expected):
    return actual == expected if isinstance(expected, bytes) else isinstance(actual, str) and actual.startswith(expected)


@pytest.mark.slow
@pytest.mark.parametrize("odd", TABLES, ids=[odd.name.replace(" ", "-") for odd in TABLES])
def test_every_odd_table_has_the_classes_that_it_says_or_one_line_that_says_why_not(odd, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    odd.write(tmp_path)
    capfd.readouterr()
    place = str(tmp_path / odd.where)
    if odd.error is not None:
        with pytest.raises(NstError, match=odd.error) as raised:
            open_source(place, labeled=True, **odd.options)
        assert "\n" not in str(raised.value)
    else:
        source = open_source(place, labeled=True, **odd.options)
        assert [source.class_names[label] for label in source.labels] == odd.classes
        in_sequence = [(row.key, read(row.read)) for row in source.rows(range(len(source)))]
        alone = [(source.key(row), read(lambda row=row: source.read(row))) for row in range(len(source))]
        assert in_sequence == alone
        assert all(map(matches, [content for _, content in alone], odd.images))
        assert len({key for key, _ in alone}) == len(odd.images) == len(source)
    assert capfd.readouterr() == ("", "")


def test_there_are_as_many_odd_tables_as_names_for_them():
    assert len({odd.name for odd in TABLES}) == len(TABLES) >= 50
