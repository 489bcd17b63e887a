import io
import time

import pytest
import torch
from conftest import picture, write_pool
from torch import nn

from nst_data.errors import NstError
from nst_data.sources import Row, open_source
from nst_train.classifiers import inference, loading
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.inference import Computation, PlainBatch, choose_computation, plain_batches, predict, restore_computation
from nst_train.classifiers.teachers import Teacher, load_teacher
from nst_train.transforms.preprocessing import TimmPreprocessing

NAMES = ["ant", "bee", "cat"]
CONFIG = {"input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}


class Linear(nn.Module):
    """Logits that are linear in the pixels, on a device of at most so many images."""

    def __init__(self, largest_batch=None):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3 * 16 * 16, len(NAMES))
        self.largest_batch, self.sizes = largest_batch, []

    def forward(self, pixels):
        self.sizes.append(len(pixels))
        if self.largest_batch is not None and len(pixels) > self.largest_batch:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.head(pixels.flatten(1))


def linear(largest_batch=None):
    return Teacher.from_members(Classifier(Linear(largest_batch), TimmPreprocessing.from_data_config(CONFIG), NAMES))


def row(number, content=None):
    file = io.BytesIO()
    picture(number % 3, number).save(file, "PNG")
    return Row(number, str(number), file.getvalue() if content is None else content)


def log_probs(teacher, computation, source, **options):
    found = [
        prediction.log_probs for _, prediction in predict(teacher, computation, plain_batches(source, computation.batch_size), **options)
    ]
    return torch.cat(found)


@pytest.fixture
def pool(tmp_path):
    return open_source(str(write_pool(tmp_path / "pool", 3, 7)))


@pytest.fixture(scope="module")
def teacher(tiny_store):
    return load_teacher(["tiny-teacher@gen-0"], tiny_store[0])[0]


@pytest.mark.parametrize("readable", [1, 2, 3, 8])
def test_a_batch_of_any_number_of_rows_goes_through_the_network_at_one_size(readable):
    teacher = linear()
    batches = [PlainBatch([row(number) for number in range(8)]), PlainBatch([row(number) for number in range(readable)])]
    whole, part = (found for _, found in predict(teacher, Computation(8, "fp32", "cpu"), batches))
    assert set(teacher.members[0].network.sizes) == {8}
    assert torch.equal(part.log_probs, whole.log_probs[:readable])


def test_an_unreadable_image_leaves_its_place_in_the_batch_empty(teacher):
    computation = Computation(4, "fp32", "cpu")
    rows = [row(0), row(1, b""), row(2), row(3, b"text")]
    (_, found), (_, whole) = predict(teacher, computation, [PlainBatch(rows), PlainBatch([row(number) for number in range(4)])])
    assert torch.equal(found.log_probs, whole.log_probs[[0, 2]])
    assert found.images.reasons == [(1, "empty file"), (3, "not an image in a known format")]
    assert found.images.hashes == [whole.images.hashes[index] for index in (0, 2)]
    assert found.images.phashes.tolist() == whole.images.phashes[[0, 2]].tolist()


def test_a_batch_without_a_readable_image_has_no_predictions(teacher):
    batches = [PlainBatch([row(0, b"")]), PlainBatch([]), PlainBatch([row(1)])]
    shapes = [tuple(found.log_probs.shape) for _, found in predict(teacher, Computation(4, "fp32", "cpu"), batches)]
    assert shapes == [(0, 3), (0, 3), (1, 3)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_neither_order_nor_a_bit(teacher, pool, threads):
    computation = Computation(4, "fp32", "cpu")
    found = list(predict(teacher, computation, plain_batches(pool, 4), threads=threads))
    assert [one.id for batch, _ in found for one in batch.rows] == list(range(21))
    expected = log_probs(teacher, computation, pool, threads=3)
    assert torch.equal(torch.cat([prediction.log_probs for _, prediction in found]), expected)


def test_the_number_of_cores_changes_no_bit(teacher, pool):
    computation, before = Computation(4, "fp32", "cpu"), torch.get_num_threads()
    expected = log_probs(teacher, computation, pool)
    try:
        torch.set_num_threads(4)
        assert torch.equal(log_probs(teacher, computation, pool), expected)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_predictions_stopped_early_leave_no_work_behind(teacher, pool):
    taken = []

    def batches():
        for batch in plain_batches(pool, 1):
            taken.append(batch)
            yield batch

    found = predict(teacher, Computation(1, "fp32", "cpu"), batches(), threads=1)
    next(found)
    found.close()
    assert len(taken) < 10


def test_an_error_of_the_source_reaches_the_caller(teacher):
    def batches():
        yield PlainBatch([row(0)])
        raise NstError("the network cable was pulled")

    with pytest.raises(NstError, match="the network cable was pulled"):
        list(predict(teacher, Computation(4, "fp32", "cpu"), batches()))


def test_a_temperature_divides_the_logits(teacher, pool):
    computation = Computation(4, "fp32", "cpu")
    logits = log_probs(teacher, computation, pool)
    for temperature in (0.25, 3.0):
        found = log_probs(teacher, computation, pool, temperature=temperature)
        torch.testing.assert_close(found, torch.log_softmax(logits / temperature, dim=1))


@pytest.mark.parametrize(("fits", "expected"), [(5, 4), (5000, 16)])
def test_the_largest_batch_that_fits_is_found_by_trial(monkeypatch, fits, expected):
    monkeypatch.setattr(inference, "LARGEST_BATCH_SIZE", 16)
    computation = choose_computation(linear(fits), 0, "fp32", compile_network=False)
    assert computation.batch_size == expected


def test_a_network_that_fits_at_no_batch_size_is_one_error(monkeypatch):
    monkeypatch.setattr(inference, "LARGEST_BATCH_SIZE", 4)
    with pytest.raises(NstError, match=r"out of memory on cpu.*one image.*smaller network"):
        choose_computation(linear(0), 0, "fp32", compile_network=False)


def test_an_error_that_is_not_of_memory_is_not_taken_for_one():
    teacher = linear()
    teacher.members[0].network.head = nn.Linear(5, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        choose_computation(teacher, 0, "fp32", compile_network=False)


@pytest.mark.parametrize(("side", "expected"), [(16, 256), (32, 256), (64, 128), (224, 8), (2000, 1)])
def test_the_batch_size_of_a_cpu_suits_its_caches(side, expected):
    teacher = Teacher.from_members(
        Classifier(Linear(), TimmPreprocessing.from_data_config(CONFIG | {"input_size": (3, side, side)}), NAMES)
    )
    found = choose_computation(teacher, None, "auto", compile_network=False)
    assert (found.batch_size, found.precision, found.device, found.threads) == (expected, "fp32", "cpu", 1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_to_single(teacher, pool, precision):
    single = log_probs(teacher, Computation(4, "fp32", "cpu"), pool).exp()
    half = log_probs(teacher, Computation(4, precision, "cpu"), pool)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.exp(), single, atol=0.03, rtol=0)
    assert not torch.equal(half.exp(), single)
    torch.testing.assert_close(half.exp().sum(dim=1), torch.ones(21))


@pytest.mark.slow
def test_a_compiled_network_gives_what_the_plain_one_gives(teacher, pool):
    plain = log_probs(teacher, Computation(4, "fp32", "cpu"), pool)
    compiled = log_probs(teacher, Computation(4, "fp32", "cpu", compile=True), pool, threads=3)
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)


def test_what_was_begun_on_another_device_is_one_error():
    begun = {"batch_size": 4, "precision": "bf16", "device": "cuda", "threads": 1, "compile": False}
    with pytest.raises(NstError, match=r"c@gen-1.*on cuda.*resume it.*`store\.remove\('c@gen-1'\)`"):
        restore_computation(begun, "c@gen-1")
    assert restore_computation(begun | {"device": "cpu"}, "c@gen-1") == Computation(4, "bf16", "cpu")


@pytest.mark.parametrize(("bytes_an_image", "is_alone"), [(1000, True), (100_000, False)])
def test_small_images_are_decoded_by_one_thread_at_a_time_and_large_ones_by_all(teacher, monkeypatch, bytes_an_image, is_alone):
    decoding, most, decoded = [], [], loading.decode_pixels

    def slowly(*arguments):
        decoding.append(1)
        most.append(len(decoding))
        time.sleep(0.005)
        decoding.pop()
        return decoded(*arguments)

    monkeypatch.setattr(loading, "decode_pixels", slowly)
    contents = [content + bytes(bytes_an_image - len(content)) for content in (row(number).read() for number in range(12))]
    batches = [PlainBatch([row(number, contents[number]) for number in range(start, start + 4)]) for start in (0, 4, 8)]
    found = list(predict(teacher, Computation(4, "fp32", "cpu"), batches, threads=3))
    assert [prediction.images.readable for _, prediction in found] == [[0, 1, 2, 3]] * 3
    assert (max(most) == 1) is is_alone
