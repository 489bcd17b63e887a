"""Finding many keys in memory that does not grow with them, against a dict."""

import numpy as np
import pyarrow as pa
import pytest

from nst_data.sources import keys


def pieces(texts, size):
    return [pa.array(texts[start : start + size]) for start in range(0, len(texts), size)]


@pytest.mark.parametrize("at_once", [3, 50, 2**20])
def test_each_key_gets_the_first_row_that_has_it_and_minus_one_where_none_has(monkeypatch, at_once):
    monkeypatch.setattr(keys, "_MAX_KEYS_IN_MEMORY", at_once)
    generator = np.random.default_rng(0)
    there = [f"folder/{number}.jpg" for number in generator.integers(0, 300, 400)]
    wanted = [f"folder/{number}.jpg" for number in generator.integers(0, 400, 500)]
    rows = np.zeros(500, np.int64)
    keys.match_keys(pieces(wanted, 70), pieces(there, 90), rows)
    first = {key: row for row, key in reversed(list(enumerate(there)))}
    assert rows.tolist() == [first.get(key, -1) for key in wanted]


def test_text_of_either_width_is_equal():
    rows = np.zeros(2, np.int64)
    keys.match_keys([pa.array(["b", "a"], pa.string())], [pa.array(["a", "b"], pa.large_string())], rows)
    assert rows.tolist() == [1, 0]
