"""Sequences of frames: videos, and folders of images."""

import os

import av
import numpy as np
import pytest
from PIL import Image

from nst_data.errors import NstError
from nst_data.images import decode
from nst_train.evaluation.sequences import Sequences


def gray(level, size_px=32):
    return np.full((size_px, size_px, 3), level, dtype=np.uint8)


def write_video(path, levels, codec="mpeg4", **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in levels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray(level), format="rgb24")))
        container.mux(stream.encode())


def write_frames(folder, levels):
    folder.mkdir(parents=True)
    for number, level in enumerate(levels, start=1):
        Image.fromarray(gray(level)).save(folder / f"frame{number}.png")


def levels_of(source):
    return [int(np.asarray(decode(row.read())).mean().round()) for row in source.rows(range(len(source)))]


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    write_frames(tmp_path / "cat" / "one", range(0, 240, 20))  # frame10 stands before frame2 in the alphabet
    source = Sequences(str(tmp_path))
    assert levels_of(source) == list(range(0, 240, 20))
    assert (source.frames, source.key(11), decode(source.read(10)).getpixel((0, 0))) == (12, "cat/one:11", (200, 200, 200))


def test_videos_are_the_same_as_folders_of_their_frames(tmp_path):
    levels = [40, 90, 140, 190, 240]
    write_video(tmp_path / "videos" / "bee" / "a.mp4", levels)
    write_video(tmp_path / "videos" / "cat" / "b.mp4", levels[::-1])
    write_frames(tmp_path / "frames" / "bee" / "a", levels)
    write_frames(tmp_path / "frames" / "cat" / "b", levels[::-1])
    videos, frames = (Sequences(str(tmp_path / kind)) for kind in ("videos", "frames"))
    assert levels_of(videos) == pytest.approx(levels_of(frames), abs=4)  # the codec rounds
    assert videos.labels.tolist() == frames.labels.tolist() == [0] * 5 + [1] * 5
    assert videos.class_names == ["bee", "cat"]
    rows = [row.id for row in videos.rows(range(3, 7))]
    assert rows == [3, 4, 5, 6]


def test_sequences_of_one_frame_are_refused(tmp_path):
    for number in range(4):
        write_frames(tmp_path / "cat" / f"s{number}", [5])
    with pytest.raises(NstError, match=r"two frames or more.*1 in cat/s0"):
        Sequences(str(tmp_path))


def test_a_folder_without_sequences_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(NstError, match=r"class folders with sequences.*video \(\.mp4.*folder of frames"):
        Sequences(str(tmp_path))


def test_a_sequence_of_another_length_is_named_or_passed_over(tmp_path):
    for number, length in enumerate((3, 3, 3, 2)):
        write_frames(tmp_path / "cat" / f"s{number}", range(length))
    with pytest.raises(NstError, match=r"cat/s3:.*3 frames.*found 2; replace it.*`partial`"):
        list(Sequences(str(tmp_path)).rows(range(12)))
    rows = list(Sequences(str(tmp_path), is_partial=True).rows(range(12)))
    assert [row.id for row in rows] == list(range(12))
    for row in rows[9:]:
        with pytest.raises(NstError, match="expected 3 frames"):
            row.read()


def test_a_play_list_that_calls_itself_a_video_opens_no_other_file(tmp_path):
    write_video(tmp_path / "cat" / "b.avi", [10, 20])
    play_list = tmp_path / "cat" / "a.mp4"
    play_list.write_text("ffconcat version 1.0\nfile b.avi\n")
    with av.open(str(play_list)) as container:
        assert len(list(container.decode(video=0))) == 2
    with pytest.raises(NstError, match=r"a\.mp4:.*video.*none.*decoded.*`partial`"):
        Sequences(str(tmp_path))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi", ".mkv", ".webm"])
def test_a_video_of_each_suffix_is_read(suffix, tmp_path):
    codec = "libvpx" if suffix == ".webm" else "mpeg4"
    write_video(tmp_path / "cat" / f"a{suffix}", [40, 200], codec)
    assert levels_of(Sequences(str(tmp_path))) == pytest.approx([40, 200], abs=4)


def test_a_video_whose_title_is_not_in_utf8_is_read(tmp_path):
    write_video(tmp_path / "cat" / "a.mkv", [40, 200], title="a title")
    content = (tmp_path / "cat" / "a.mkv").read_bytes()
    assert b"a title" in content
    (tmp_path / "cat" / "a.mkv").write_bytes(content.replace(b"a title", b"\xff title"))
    assert levels_of(Sequences(str(tmp_path))) == pytest.approx([40, 200], abs=4)


def test_a_broken_video_is_named(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.mp4").write_bytes(b"no video")
    with pytest.raises(NstError, match=r"a\.mp4:.*video.*none.*decoded.*`partial`"):
        Sequences(str(tmp_path))


def test_the_first_video_may_be_broken_where_part_of_them_is_enough(tmp_path):
    for name in "abcd":
        write_video(tmp_path / "cat" / f"{name}.mp4", [10, 20, 30])
    (tmp_path / "cat" / "a.mp4").write_text("no video")
    with pytest.raises(NstError, match=r"a\.mp4:.*video.*none.*decoded.*`partial`"):
        Sequences(str(tmp_path))
    source = Sequences(str(tmp_path), is_partial=True)
    assert (source.frames, len(source)) == (3, 12)


def test_a_video_that_is_a_pipe_is_an_error_and_nobody_waits(tmp_path):
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "one.mp4")
    with pytest.raises(NstError, match=r"cat/one\.mp4: not a file.*folder.*remove it"):
        Sequences(str(tmp_path))
