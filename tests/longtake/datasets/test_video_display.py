"""What a container says of how its pictures are shown: turned, trimmed, stretched; honoured, or refused by name."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from longtake.datasets import video
from tests.longtake.sources.formats import foreign_files as files

ONE = 1 << 16
# Four colours, one a corner: every turn and mirror image differs.
CORNERS = np.zeros((2, 48, 64, 3), np.uint8)
CORNERS[:, :24, :32], CORNERS[:, :24, 32:] = (200, 30, 30), (30, 200, 30)
CORNERS[:, 24:, :32], CORNERS[:, 24:, 32:] = (30, 30, 200), (200, 200, 200)


def film(path: Path, frames: Any = CORNERS) -> bytearray:
    files.mp4(path, frames)
    return bytearray(path.read_bytes())


def with_matrix(data: bytearray, a: int, b: int, c: int, d: int) -> bytes:
    """The film with its display matrix replaced: x' = a x + c y, y' = b x + d y."""
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(data)


@pytest.mark.parametrize(
    ("matrix", "right"),
    [
        ((0, ONE, -ONE, 0), lambda f: np.rot90(f, -1, (1, 2))),
        ((0, -ONE, ONE, 0), lambda f: np.rot90(f, 1, (1, 2))),
        ((-ONE, 0, 0, -ONE), lambda f: np.rot90(f, 2, (1, 2))),
        ((-ONE, 0, 0, ONE), lambda f: f[:, :, ::-1]),
        ((ONE, 0, 0, -ONE), lambda f: f[:, ::-1]),
        ((0, ONE, ONE, 0), lambda f: f.swapaxes(1, 2)),
        ((0, -ONE, -ONE, 0), lambda f: f.swapaxes(1, 2)[:, ::-1, ::-1]),
    ],
)
def test_pictures_are_turned_as_their_display_matrix_says(tmp_path: Path, matrix: Any, right: Any) -> None:
    turned = with_matrix(film(tmp_path / "a.mp4"), *matrix)
    for frames in (video.read(io.BytesIO(turned)).frames, video.read_at(io.BytesIO(turned), [0.0, 0.1])):
        assert frames.shape == right(CORNERS).shape
        assert np.abs(frames.astype(int) - right(CORNERS)).max() < 40


@pytest.mark.parametrize("matrix", [(46341, 46341, -46341, 46341), (2 * ONE, 0, 0, ONE), (ONE, ONE // 2, 0, ONE)])
def test_a_slant_is_refused(tmp_path: Path, matrix: Any) -> None:
    with pytest.raises(video.BadVideo, match="display matrix|not square"):
        video.read(io.BytesIO(with_matrix(film(tmp_path / "a.mp4"), *matrix)))


def trimmed(path: Path, shift: int) -> bytes:
    """Twelve frames, begun `shift` frames late by an edit list."""
    film(path, files.calm(0))
    out = io.BytesIO()
    with av.open(str(path)) as source, av.open(out, "w", format="mp4", options={"use_editlist": "1"}) as target:
        stream = source.streams.video[0]
        kept = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            step = round(Fraction(1, 10) / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift * step, packet.dts - shift * step, kept
            target.mux(packet)
    return out.getvalue()


def shown(frames: Any) -> list[int]:
    """Which of `calm`'s frames these are."""
    return [round((float(frame.mean()) - 20) / 15) for frame in frames]


@pytest.mark.parametrize("shift", [0, 1, 3, 5])
def test_frames_before_the_start_of_an_edit_list_are_not_shown(tmp_path: Path, shift: int) -> None:
    data = trimmed(tmp_path / "a.mp4", shift)
    assert shown(video.read(io.BytesIO(data)).frames) == list(range(shift, 12))


@pytest.mark.parametrize("lost", [200, 2000])
def test_a_trimmed_film_that_is_cut_off_is_refused(tmp_path: Path, lost: int) -> None:
    with pytest.raises(video.BadVideo):
        video.read(io.BytesIO(trimmed(tmp_path / "a.mp4", 3)[:-lost]))


@pytest.mark.parametrize("ratio", [Fraction(4, 3), Fraction(1, 2), Fraction(40, 33)])
def test_pixels_that_are_not_square_are_refused(tmp_path: Path, ratio: Fraction) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = ratio
        for frame in CORNERS:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with path.open("rb") as file, pytest.raises(video.BadVideo, match=f"{ratio.numerator}:{ratio.denominator}.*setsar"):
        video.read(file)


def test_two_films_in_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for stream in streams:
            for frame in CORNERS:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    with path.open("rb") as file, pytest.raises(video.BadVideo, match="2 video streams"):
        video.read(file)


def test_a_bare_stream_has_no_times(tmp_path: Path) -> None:
    with pytest.raises(video.BadVideo, match="without times"):
        video.read(io.BytesIO(video.encode(files.calm(0, size=64))))


def test_frames_by_their_times(tmp_path: Path) -> None:
    data = bytes(film(tmp_path / "a.mp4", files.calm(0)))
    assert shown(video.read_at(io.BytesIO(data), [0.7, 0.8, 1.1])) == [7, 8, 11]
    for times in ([0.75], [0.701], [0.699], [1.1, 1.2], [-0.1, 0.0]):
        with pytest.raises(video.BadVideo, match=r"no frame at"):
            video.read_at(io.BytesIO(data), times)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(orientation: int) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS[0]).save(buffer, "JPEG", exif=exif, quality=95, subsampling=0)
    right = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    found = video.read_image(buffer.getvalue())
    assert found.shape == right.shape and np.abs(found.astype(int) - right).max() < 12


OPENED = {
    "libx264": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0",
    "libx265": "open-gop=1:keyint=12:bframes=4:log-level=none",
}


@pytest.mark.parametrize(("codec", "first"), [("libx264", 13), ("libx264", 20), ("libx264", 31), ("libx265", 35)])
def test_open_groups_of_pictures_are_told_with_the_way_out(tmp_path: Path, codec: str, first: int) -> None:
    """A span that begins behind an open group needs pictures before it; from the start all can be read."""
    base = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    frames = np.stack([np.roll(base, (t, 2 * t), (0, 1)) for t in range(40)]).astype(np.uint8)
    opened, parameters = OPENED[codec], codec.removeprefix("lib") + "-params"
    for name, options in (("open", opened), ("closed", opened.replace("open-gop=1", "open-gop=0"))):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream(codec, rate=10, options={parameters: options, "crf": "10"})
            stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    times = [(first + t) / 10 for t in range(5)]
    with (tmp_path / "closed.mp4").open("rb") as file:
        assert video.read_at(file, times).shape == (5, 64, 64, 3)
    with (
        (tmp_path / "open.mp4").open("rb") as file,
        pytest.raises(video.BadVideo, match=r"groups of pictures are open.*-flags \+cgop"),
    ):
        video.read_at(file, times)
    with (tmp_path / "open.mp4").open("rb") as file:
        assert len(video.read(file).frames) == 40
