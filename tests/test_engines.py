import narwhals as nw
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_data.tables import engines
from nst_data.tables.engines import count_numbers

NUMBERS = st.one_of(st.none(), st.integers(-3, 12), st.sampled_from([-(2**40), 2**24 - 1, 2**24, 2**62]))


@given(st.lists(NUMBERS, max_size=40), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_numbers_are_counted_batch_by_batch_however_large_they_are(numbers, at_once):
    before = engines.BATCH_ROWS
    engines.BATCH_ROWS = at_once
    try:
        found = count_numbers(nw.from_native(pl.LazyFrame({"a": numbers}, schema={"a": pl.Int64})), nw.col("a"))
    finally:
        engines.BATCH_ROWS = before
    assert dict(found.iter_rows()) == {number: numbers.count(number) for number in numbers if number is not None}
    assert found.schema == {"number": pl.Int64, "rows": pl.Int64}
