"""Moving pictures through PyAV, the one decoder library of this house: streams of H.264 and whole mp4 files.

PyAV brings its own FFmpeg, so no system package decides what can be read. Video is never lossless here, and whoever
writes it measures what it cost (`psnr_db`). Streams keep colours at full resolution (yuv444p): on mazes of 256 x 256
that is worth 5 to 8 dB at the same size. An mp4 for people is yuv420p, which every player shows.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from longtake.datasets import room

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

Frames = NDArray[np.uint8]

CRF = 18  # x264's constant quality: 0 is the best, 51 the worst
SOUGHT = 12  # frames between two keyframes of an mp4 for people
UNEVEN = 0.1  # of the time between two frames: how far a frame may lie from its even place
NEAR_S = 1e-4  # how far from a wanted time a frame may lie, beside the rounding of its file: LeRobot's own tolerance
MOST_PIXELS = 1 << 25
"""Of a picture: 8K has nearly as many."""

TURNS = 1 << 16  # the number one in a display matrix


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
    rgb, count = _Rgb(), 0
    try:
        for packet in [*decoder.parse(data), *decoder.parse(b""), None]:
            for picture in decoder.decode(packet):
                if (picture.height, picture.width, 3) != into.shape[1:]:
                    raise ValueError(f"frames of {picture.height}x{picture.width} instead of {into.shape[1:]}")
                if first <= count < first + len(into):
                    into[count - first] = rgb(picture)
                count += 1
    except av.FFmpegError as error:
        raise ValueError(f"no H.264 stream: {error.strerror}") from error
    if count != frames:
        raise ValueError(f"{count} frames in the stream instead of {frames}")


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


class Undecodable(BadVideo):
    """A file whose bytes a decoder does not take."""


def read(file: IO[bytes]) -> Video:
    """A whole video file, frame by frame. Raises BadVideo."""
    with _opened(file) as (container, stream):
        _require_room(stream)
        pictures = [(picture(), time) for picture, time in _pictures(container, stream)]
        # Frames that an edit list leaves out are in the file and not shown. Not every container counts its frames.
        index = list(stream.index_entries) if stream.frames else []
        promised = sum(not entry.is_discard for entry in index)
    if promised and promised != len(pictures):
        raise BadVideo(f"the file is cut off or damaged: it promises {promised} frames and holds {len(pictures)}")
    return Video(_stacked([picture for picture, _ in pictures]), _even_fps([time for _, time in pictures]))


OPEN = (
    ", or its groups of pictures are open, so that no span of it can be read by itself: close them (ffmpeg -i IN -c:v "
    "libx264 -flags +cgop OUT)"
)


def read_at(file: IO[bytes], times: Sequence[float], whole: bool = False) -> Frames:
    """The frame shown at each of `times`, ascending seconds. Raises BadVideo naming the first time without a frame.

    whole: these are all frames of the file from the first of them on; BadVideo for one that shows others too.
    """
    try:
        return _read_at(file, times, whole)
    except Undecodable as error:
        if whole or times[0] <= NEAR_S:
            raise
        raise BadVideo(f"{error}: from {times[0]:.6g} s on it is damaged{OPEN}") from error


def _read_at(file: IO[bytes], times: Sequence[float], whole: bool) -> Frames:
    pictures: list[Frames] = []
    with _opened(file) as (container, stream):
        near = NEAR_S + _tick(stream) / 2
        begin = 0 if whole else max(0, int((times[0] - near) / _tick(stream)))
        container.seek(begin, stream=stream, backward=True)
        for picture, time in _pictures(container, stream):
            if whole and time > times[-1] + near:
                raise BadVideo(f"a frame at {time:.6g} s, the rows are of {times[0]:.6g} to {times[-1]:.6g} s")
            if len(pictures) < len(times) and time > times[len(pictures)] + near:
                break
            array = None
            while len(pictures) < len(times) and abs(time - times[len(pictures)]) <= near:
                array = picture() if array is None else array
                pictures.append(array)
            if len(pictures) == len(times) and not whole:
                break
    if len(pictures) < len(times):
        lost = f"no frame at {times[len(pictures)]:.6g} s, only the {len(pictures)} before it of {len(times)}"
        raise BadVideo(lost if whole or pictures else f"{lost}{OPEN}")  # a decoder of HEVC leaves such frames out
    return _stacked(pictures)


def read_image(data: bytes) -> Frames:
    """One picture (H, W, 3) of a PNG, JPEG or WebP file, upright as its EXIF orientation says. Raises BadVideo."""
    rgb = _Rgb()
    with _opened(io.BytesIO(data)) as (container, stream):
        pixels = _stacked([rgb(picture) for picture in container.decode(stream)])[0]
    return _oriented(pixels, data)


def _oriented(pixels: Frames, data: bytes) -> Frames:
    """Pixels turned as the EXIF of their file says; PyAV does not know that side data."""
    import PIL
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            orientation = picture.getexif().get(0x0112, 1)
    except (PIL.UnidentifiedImageError, SyntaxError, ValueError, OSError) as error:
        raise BadVideo(f"not a picture that can be read: {error}") from error
    if orientation not in range(1, 9):
        raise BadVideo(f"EXIF orientation {orientation}, expected 1 to 8")
    turned = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    return turned[::down, ::right]


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


@contextlib.contextmanager
def _opened(file: IO[bytes]) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its one stream of moving pictures. Raises BadVideo, also for what happens while it is read."""
    import av
    from av.stream import Disposition

    try:
        with av.open(file, "r") as container:
            # A cover picture is a stream too.
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if len(streams) != 1:
                raise BadVideo(
                    f"{len(streams) or 'no'} video stream{'s' * (len(streams) > 1)} in the file, expected one"
                )
            streams[0].thread_count = 1
            # A decoder keeps many pictures of the size that the header tells of.
            streams[0].codec_context.options = {"err_detect": "explode", "max_pixels": str(MOST_PIXELS)}
            yield container, streams[0]
    except av.FFmpegError as error:
        raise Undecodable(f"not a video that can be read: {error.strerror}") from error


def _pictures(container: InputContainer, stream: VideoStream) -> Iterator[tuple[Callable[[], Frames], float]]:
    """Every picture from where the file stands, as a function that converts it, and its time in seconds."""
    rgb = _Rgb()
    for number, picture in enumerate(container.decode(stream)):
        if picture.is_corrupt:
            raise Undecodable(f"frame {number} is damaged")
        if picture.pts is None:
            raise BadVideo("frames without times: put the bare stream into an mp4 (ffmpeg -r FPS -i IN -c copy OUT)")
        _require_square_pixels(stream)
        yield functools.partial(_upright, rgb, picture), picture.pts * _tick(stream)


def _require_room(stream: VideoStream) -> None:
    """Raise TooLarge for a whole file that, by its header, holds more pictures than there is room for."""
    room.require(
        3 * stream.height * stream.width * stream.frames,
        f"a video of {stream.frames} pictures of {stream.height} x {stream.width}",
    )


def _tick(stream: VideoStream) -> float:
    """Seconds of one unit of a stream's times."""
    return float(stream.time_base or 0) or 1.0


def _stacked(pictures: list[Frames]) -> Frames:
    if not pictures:
        raise BadVideo("no frame in the video")
    if len({picture.shape for picture in pictures}) != 1:
        raise BadVideo("frames of different sizes in one video")
    return np.stack(pictures)


def _require_square_pixels(stream: VideoStream) -> None:
    """Raises BadVideo for pixels that are shown wider or higher than they are stored."""
    for ratio in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
        if ratio not in (None, 0, 1):
            raise BadVideo(
                f"pixels of {ratio.numerator}:{ratio.denominator}, not square: "
                "scale them first (ffmpeg -i IN -vf scale=iw*sar:ih,setsar=1 OUT)"
            )


def _upright(rgb: _Rgb, picture: av.VideoFrame) -> Frames:
    """A picture as a player shows it: turned or mirrored as its display matrix says. Raises BadVideo for a slant."""
    pixels = rgb(picture)
    data = picture.side_data.get("DISPLAYMATRIX")
    if data is None:
        return pixels
    right, down, _, left, below = np.frombuffer(cast(Any, data), np.int32)[:5] / TURNS
    if {abs(right), abs(below)} == {1} and not down and not left:
        return pixels[:: int(below), :: int(right)]
    if {abs(down), abs(left)} == {1} and not right and not below:
        return pixels.swapaxes(0, 1)[:: int(down), :: int(left)]
    raise BadVideo(
        f"shown turned by {picture.rotation:g} degrees or scaled by its display matrix: re-encode it upright"
    )


class _Rgb:
    """Pictures as arrays (H, W, 3), through one converter: setting one up costs as much as the work itself."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._converter = VideoReformatter()

    def __call__(self, picture: av.VideoFrame) -> Frames:
        room.take(3 * picture.height * picture.width, f"a picture of {picture.height} x {picture.width}")
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
