"""Moving pictures through PyAV, the one decoder library of this house: streams of H.264 and whole mp4 files.

PyAV brings its own FFmpeg, so no system package decides what can be read. Video is never lossless here, and whoever
writes it measures what it cost (`psnr_db`). Streams keep colours at full resolution (yuv444p): on mazes of 256 x 256
that is worth 5 to 8 dB at the same size. An mp4 for people is yuv420p, which every player shows.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

Frames = NDArray[np.uint8]

CRF = 18  # x264's constant quality: 0 is the best, 51 the worst
SOUGHT = 12  # frames between two keyframes of an mp4 for people
UNEVEN = 0.1  # of the time between two frames: how far a frame may lie from its even place


def encode(frames: Frames, crf: int = CRF) -> bytes:
    """Frames (T, H, W, 3) as one H.264 stream that begins with a keyframe."""
    import av

    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt, encoder.time_base = "yuv444p", Fraction(1, 25)
    encoder.options = {"crf": str(crf), "preset": "medium"}
    encoder.thread_count = 1  # one task of many on this machine, and the same bytes on every machine
    packets: list[av.Packet[Any]] = []
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = number
        packets += encoder.encode(picture)
    return b"".join(map(bytes, [*packets, *encoder.encode(None)]))


def decode(data: bytes, frames: int, first: int, into: Frames) -> None:
    """Write the frames from `first` on of a stream that `encode` made to `into` (T, H, W, 3).

    Raises ValueError if the stream does not hold `frames` frames, or holds others than of that size.
    """
    import av

    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    rgb, found = _Rgb(), 0
    try:
        for packet in [*decoder.parse(data), *decoder.parse(b""), None]:
            for picture in decoder.decode(packet):
                if (picture.height, picture.width, 3) != into.shape[1:]:
                    raise ValueError(f"frames of {picture.height}x{picture.width} instead of {into.shape[1:]}")
                if first <= found < first + len(into):
                    into[found - first] = rgb(picture)
                found += 1
    except av.FFmpegError as error:
        raise ValueError(f"no H.264 stream: {error.strerror}") from error
    if found != frames:
        raise ValueError(f"{found} frames in the stream instead of {frames}")


def squared_error(one: Frames, other: Frames) -> float:
    """The sum of squared differences over all numbers, frame by frame: no large copy of floats."""
    return float(sum(np.square(a.astype(np.int32) - b).sum(dtype=np.int64) for a, b in zip(one, other, strict=True)))


def psnr_db(squared_error: float, numbers: int) -> float:
    """Peak signal-to-noise ratio of 8-bit numbers with that sum of squared errors; infinite for none."""
    return math.inf if not squared_error else 10 * math.log10(255**2 * numbers / squared_error)


@dataclass(frozen=True)
class Video:
    """Frames uint8 (T, H, W, 3) and how many of them make a second."""

    frames: Frames
    fps: float


class BadVideo(ValueError):
    """A file that is no video, is cut off or damaged, or whose frames do not come at even times."""


def read(file: IO[bytes]) -> Video:
    """A whole video file, frame by frame. Raises BadVideo."""
    pictures, times = _gather(file, None)
    return Video(np.stack(pictures), _even_fps(times))


def read_span(file: IO[bytes], start_s: float, frames: int, fps: float) -> Frames:
    """Exactly `frames` frames from `start_s` seconds on, one every 1 / fps. Raises BadVideo if one is not there."""
    pictures, times = _gather(file, (start_s, start_s + (frames - 0.5) / fps))
    wanted = start_s + np.arange(frames) / fps
    if len(times) != frames or np.abs(np.asarray(times) - wanted).max(initial=0) > UNEVEN / fps:
        raise BadVideo(
            f"{len(times)} frames between {start_s:g} s and {start_s + frames / fps:g} s, "
            f"expected {frames}, one every 1/{fps:g} s"
        )
    return np.stack(pictures)


def read_image(data: bytes) -> Frames:
    """One picture (H, W, 3) of a PNG or JPEG file. Raises BadVideo."""
    pictures, _ = _gather(io.BytesIO(data), None)
    return pictures[0]


def write(file: str | IO[bytes], frames: Iterable[Frames], fps: float) -> None:
    """An mp4 of frames (H, W, 3) for people, that can be sought in; a row or column at an odd edge is cut."""
    import av

    coming = iter(frames)
    first = next(coming)
    height, width = (size // 2 * 2 for size in first.shape[:2])
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.gop_size = SOUGHT
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in itertools.chain([first], coming):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _gather(file: IO[bytes], span: tuple[float, float] | None) -> tuple[list[Frames], list[float]]:
    """Pictures and their times in seconds, all or those of a span."""
    import av

    try:
        with av.open(file, "r") as container:
            found = list(_pictures(container, span))
    except av.FFmpegError as error:
        raise BadVideo(f"not a video that can be read: {error.strerror}") from error
    if not found:
        raise BadVideo("no frame in the video")
    if len({picture.shape for picture, _ in found}) != 1:
        raise BadVideo("frames of different sizes in one video")
    return [picture for picture, _ in found], [time for _, time in found]


def _pictures(container: InputContainer, span: tuple[float, float] | None) -> Iterator[tuple[Frames, float]]:
    if not container.streams.video:
        raise BadVideo("no video stream in the file")
    stream = container.streams.video[0]
    stream.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}
    tick = float(stream.time_base or 0) or 1.0
    if span is not None:
        container.seek(max(0, int(span[0] / tick)), stream=stream, backward=True)
    read, rgb = 0, _Rgb()
    for picture in container.decode(stream):
        time: float = (picture.pts if picture.pts is not None else read) * tick
        read += 1
        if picture.is_corrupt:
            raise BadVideo(f"frame {read - 1} is damaged")
        if span is None or span[0] - tick <= time <= span[1]:
            yield rgb(picture), time
        elif time > span[1]:
            return
    promised = stream.frames
    if span is None and promised and promised != read:
        raise BadVideo(f"the file is cut off or damaged: it promises {promised} frames and holds {read}")


class _Rgb:
    """Pictures as arrays (H, W, 3), through one converter: setting one up costs as much as the work itself."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._converter = VideoReformatter()

    def __call__(self, picture: av.VideoFrame) -> Frames:
        # One thread: its own would each get a slice of a small picture.
        return np.asarray(self._converter.reformat(picture, format="rgb24", threads=1).to_ndarray(), np.uint8)


def _even_fps(times: list[float]) -> float:
    """Frames per second. Raises BadVideo unless they come at even times."""
    if len(times) < 2:
        return 1.0
    step = (times[-1] - times[0]) / (len(times) - 1)
    off = np.abs(np.asarray(times) - times[0] - step * np.arange(len(times)))
    if step <= 0 or off.max() > UNEVEN * step:
        worst = int(off.argmax())
        raise BadVideo(f"variable frame rate: frame {worst} comes {off[worst]:.3f} s off its even time")
    return 1 / step
