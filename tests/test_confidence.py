import numpy as np
import polars as pl
import pytest
import torch

from nst_data.tables.confidence import confidence_bin, count_by_confidence, histogram_from_counts
from nst_data.tables.histogram import Histogram


def bins(values, number=10):
    return (
        pl.DataFrame({"confidence": pl.Series(values, dtype=pl.Float32)})
        .select(confidence_bin(pl.col("confidence"), number))
        .to_series()
        .to_list()
    )


def test_a_bin_holds_its_upper_end_and_the_first_one_0_too():
    assert bins([0.0, 1e-9, 0.5, 1.0]) == [0, 0, 4, 9]


def test_the_float32_nearest_to_a_bound_falls_on_its_own_side():
    above = np.float32(0.3)  # 0.300000012
    assert bins([above, np.nextafter(above, np.float32(0))]) == [3, 2]


def test_what_is_no_number_in_0_to_1_is_in_no_bin():
    assert bins([float("nan"), -0.1, 1.1, float("inf"), None]) == [None] * 5


@pytest.mark.parametrize("number", [10, 15])
def test_the_bins_are_those_that_calibration_measures_in(number):
    values = np.concatenate([np.random.default_rng(0).random(2000), np.arange(number + 1) / number]).astype(np.float32)
    inner = torch.arange(1, number, dtype=torch.float64) / number  # as nst_train.classifiers.calibration cuts
    assert bins(values, number) == torch.bucketize(torch.from_numpy(values).double(), inner).tolist()


def test_a_histogram_has_every_bin_and_counts_what_is_in_none():
    labels = pl.LazyFrame({"confidence": pl.Series([0.05, 0.95, 1.0, float("nan"), 2.0], dtype=pl.Float32)})
    assert histogram_from_counts(count_by_confidence(labels).collect()) == Histogram((1, 0, 0, 0, 0, 0, 0, 0, 0, 2), outside=2)


def test_a_histogram_of_nothing_is_all_zeros():
    labels = pl.LazyFrame(schema={"confidence": pl.Float32})
    assert histogram_from_counts(count_by_confidence(labels).collect()) == Histogram((0,) * 10, outside=0)
