"""Rendered footage whose truth is known: pans of known speed, cuts at known frames, a burnt-in frame number.

Frames are (H, W, 3) RGB uint8 arrays, sizes are (width, height) in pixels, times in seconds. Everything
is a function of its arguments: the same call gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import av
import av.video.codeccontext
import av.video.stream
import cv2
import numpy as np

Frame = np.ndarray

COUNTER_BITS = 16
COUNTER_HEIGHT = 0.08  # of the frame's height, at its top

# ---------------------------------------------------------------------------------------------------
# Writing files
# ---------------------------------------------------------------------------------------------------

_SPEED: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "pools=none:frame-threads=1:log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "0"},
    "libsvtav1": {"preset": "11", "svtav1-params": "lp=1"},
}
_QUALITY = {"libx264": 23, "libx265": 26, "libvpx-vp9": 34, "libsvtav1": 36, "mpeg4": 4, "mjpeg": 4}
_TICKS = 60000  # per second, for explicit timestamps; MPEG-4 part 2 allows no more than 65535


def write_video(
    path: str | Path,
    frames: Iterable[Frame],
    *,
    fps: float | Fraction = 24,
    codec: str = "libx264",
    pix_fmt: str | None = None,
    gop: int | None = None,
    crf: int | None = None,
    pts: Sequence[float] | None = None,
    rotation: int = 0,
    sar: Fraction | tuple[int, int] | None = None,
    options: dict[str, str] | None = None,
    colour: tuple[int, int, int] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode `frames` to `path`; the suffix names the container (.mp4, .mkv, .webm, .avi, .mov, .ts).

    codec: libx264, libx265, libvpx-vp9, libsvtav1, mpeg4 or mjpeg (any encoder PyAV has will do).
    pix_fmt: yuv420p unless told (yuvj420p for mjpeg), e.g. yuv420p10le, yuv444p.
    gop: the largest number of frames from one key frame to the next.
    crf: the encoder's quality scale; for mpeg4 and mjpeg the quantiser, 2 (best) to 31.
    pts: a time for each frame, rising: a variable rate, or a start other than zero. Not in .avi.
    rotation: degrees, a multiple of 90, by which a player turns the stored picture counter-clockwise
        (what `VideoFrame.rotation` reads back). `frames` are as displayed; they are stored turned.
    sar: width over height of a stored pixel. `frames` are as stored: not stretched.
    colour: tags for primaries, transfer and matrix (numbers of ITU-T H.273); the pixels stay as they are.
    container_options: the muxer's; {"fflags": "bitexact"} leaves out ids that Matroska draws at random.
    """
    path = Path(path)
    if rotation % 90:
        raise ValueError(f"rotation {rotation} is not a multiple of 90")
    source = iter(frames)
    first = next(source)
    stored = _turned(first, rotation)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options={**_SPEED.get(codec, {}), **(options or {})})
        assert isinstance(stream, av.video.stream.VideoStream)
        context = stream.codec_context
        stream.height, stream.width = stored.shape[:2]
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        context.thread_count = 1  # the same bytes on every machine
        context.time_base = Fraction(1, _TICKS) if pts is not None else 1 / rate
        if gop is not None:
            context.gop_size = gop
            if codec in ("libx264", "libx265"):
                context.options = {**context.options, "keyint_min": "1"}
        quality = _QUALITY.get(codec) if crf is None else crf
        if quality is not None:
            if codec in ("mpeg4", "mjpeg"):
                context.qmin = context.qmax = quality
                context.bit_rate = 100_000_000  # the quantiser decides
            else:
                context.options = {**context.options, "crf": str(quality)}
        if sar is not None:
            context.sample_aspect_ratio = Fraction(*sar) if isinstance(sar, tuple) else sar
        if colour is not None:
            context.color_primaries, context.color_trc, context.colorspace = colour
        if rotation % 360:
            stream.set_display_rotation(rotation)
        count = 0
        for k, image in enumerate(chain([first], source)):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(_turned(image, rotation)), "rgb24")
            picture.pts = k if pts is None else round(pts[k] * _TICKS)
            picture.time_base = context.time_base
            container.mux(stream.encode(picture))
            count += 1
        container.mux(stream.encode(None))
    if pts is not None and len(pts) != count:
        raise ValueError(f"{len(pts)} timestamps for {count} frames")
    return path


def _turned(image: Frame, rotation: int) -> Frame:
    """`image` turned clockwise by `rotation` degrees: what a player undoes."""
    return np.rot90(image, -rotation // 90 % 4)


def read_frames(path: str | Path) -> list[tuple[float, Frame]]:
    """Every frame of the first video stream as stored (not turned, not stretched), with its time."""
    with av.open(str(path)) as container:
        return [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


# ---------------------------------------------------------------------------------------------------
# The frame number as an oracle
# ---------------------------------------------------------------------------------------------------


def draw_counter(image: Frame, k: int) -> Frame:
    """A copy of `image` with `k` (0 to 65535) as 16 black or white blocks, high bit left, across the top."""
    if not 0 <= k < 1 << COUNTER_BITS:
        raise ValueError(f"{k} does not fit in {COUNTER_BITS} bits")
    image = image.copy()
    height, width = image.shape[:2]
    edges = np.linspace(0, width, COUNTER_BITS + 1).round().astype(int)
    rows = max(1, round(height * COUNTER_HEIGHT))
    for bit in range(COUNTER_BITS):
        image[:rows, edges[bit] : edges[bit + 1]] = 255 * (k >> (COUNTER_BITS - 1 - bit) & 1)
    return image


def read_counter(image: Frame) -> int:
    """The number `draw_counter` wrote: RGB or grey, after lossy coding, at any size from 48 x 28 up."""
    height, width = image.shape[:2]
    rows = height * COUNTER_HEIGHT
    top, bottom = int(rows * 0.25), max(int(rows * 0.25) + 1, round(rows * 0.75))
    k = 0
    for bit in range(COUNTER_BITS):
        left, right = width * (bit + 0.3) / COUNTER_BITS, width * (bit + 0.7) / COUNTER_BITS
        block = image[top:bottom, int(left) : max(int(left) + 1, round(right))]
        k = 2 * k + int(block.mean() > 127)
    return k


def counted(frames: Iterable[Frame], start: int = 0) -> Iterator[Frame]:
    """`frames` with their numbers burnt in, from `start`."""
    for k, image in enumerate(frames, start):
        yield draw_counter(image, k)


# ---------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------

_MASTER = 1024  # pixels; textures of every size are this one, resized


@lru_cache(maxsize=8)
def _noise(seed: int, slope: float) -> np.ndarray:
    """Tileable (1024, 1024) float32 noise, mean 0, deviation 1, amplitude spectrum 1 / frequency^slope.

    Amplitudes of natural pictures fall as about 1 / frequency (Field 1987).
    """
    rng = np.random.default_rng(seed)
    fy = np.fft.fftfreq(_MASTER)[:, None]
    fx = np.fft.rfftfreq(_MASTER)[None, :]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf  # no mean
    spectrum = np.fft.rfft2(rng.standard_normal((_MASTER, _MASTER))) / radius**slope
    field = np.fft.irfft2(spectrum, s=(_MASTER, _MASTER))
    return (field / field.std()).astype(np.float32)


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if (image.shape[1], image.shape[0]) == (width, height):
        return image
    smaller = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def texture(
    seed: int,
    height: int,
    width: int,
    *,
    slope: float = 1.1,
    dark: Sequence[float] | np.ndarray = (20, 30, 45),
    light: Sequence[float] | np.ndarray = (235, 220, 190),
) -> Frame:
    """Tileable noise with detail at every scale, between two colours: (height, width, 3) uint8.

    The same seed shows the same picture at every size. A steeper `slope` is softer.
    """
    grey = _resized(_noise(seed, slope), width, height)
    grey = np.clip(0.5 + 0.2 * grey, 0, 1)[..., None]
    low, high = np.asarray(dark, np.float32), np.asarray(light, np.float32)
    return (low + (high - low) * grey).round().astype(np.uint8)


def shifted(image: Frame, dx: float, dy: float = 0.0) -> Frame:
    """`image` moved right and down by parts of a pixel, wrapping round."""
    height, width = image.shape[:2]
    # Whole pixels by rolling, the rest by interpolation: exact where it can be.
    ix, iy = int(np.floor(dx)), int(np.floor(dy))
    fx, fy = dx - ix, dy - iy
    image = np.roll(image, (iy % height, ix % width), axis=(0, 1))
    if fx == 0 and fy == 0:
        return image
    matrix = np.array([[1, 0, fx], [0, 1, fy]], np.float64)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)


def pan(
    seed: int,
    size: tuple[int, int],
    *,
    fps: float,
    seconds: float,
    speed: float,
    angle: float = 0.0,
    slope: float = 1.1,
) -> Iterator[Frame]:
    """A texture moving as a whole at `speed` frame widths per second, `angle` degrees from rightwards."""
    width, height = size
    image = texture(seed, height, width, slope=slope)
    step = speed * width / fps
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    for k in range(round(seconds * fps)):
        yield shifted(image, k * step * c, k * step * s)


def palette(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a light RGB colour whose hues differ clearly from those of the next seeds."""
    hue = (seed * 0.381966 + 0.05) % 1.0  # the golden section: neighbours lie far apart
    colours = [
        (hue * 179, 200, 60 + 40 * (seed % 3)),
        (((hue + 0.12) % 1.0) * 179, 110, 200 + 25 * (seed % 2)),
    ]
    rgb = cv2.cvtColor(np.array([colours], np.uint8), cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    return rgb[0], rgb[1]


def scene(
    seed: int,
    size: tuple[int, int],
    *,
    frames: int,
    fps: float = 24,
    speed: float = 0.03,
) -> Iterator[Frame]:
    """One shot: a ground in its own two colours that pans slowly, and a disc that crosses it.

    `speed` is the ground's, in frame widths per second; the disc goes four times as fast.
    """
    width, height = size
    dark, light = palette(seed)
    ground = texture(seed, height, width, slope=1.3, dark=dark, light=light)
    disc = texture(seed + 1000, height, width, slope=1.0, dark=light, light=dark)
    angle = np.radians(seed * 77 % 360)
    c, s = np.cos(angle), np.sin(angle)
    radius = round(height * 0.16)
    for k in range(frames):
        moved = k * speed * width / fps
        image = shifted(ground, moved * c, moved * s)
        mask = np.zeros((height, width), np.uint8)
        centre = (width * (0.3 + 0.1 * (seed % 5)) - 4 * moved * c, height * 0.5 - 4 * moved * s)
        point = (round(centre[0] % width * 16), round(centre[1] % height * 16))
        cv2.circle(mask, point, radius * 16, 255, -1, cv2.LINE_AA, 4)
        image[mask > 127] = disc[mask > 127]
        yield image


def scenes(
    lengths: Sequence[int],
    size: tuple[int, int],
    *,
    fps: float = 24,
    seed: int = 0,
    speed: float = 0.03,
) -> Iterator[Frame]:
    """Shots of `lengths` frames, each its own scene, with hard cuts: at the frames `cut_frames` gives."""
    for i, length in enumerate(lengths):
        yield from scene(seed + i, size, frames=length, fps=fps, speed=speed)


def cut_frames(lengths: Sequence[int]) -> list[int]:
    """The first frame of each shot but the first."""
    return [int(n) for n in np.cumsum(lengths)[:-1]]


def dissolve(first: Iterable[Frame], second: Iterable[Frame], frames: int) -> Iterator[Frame]:
    """The end of `first` blends into the start of `second` over `frames` frames.

    The blend is at frames len(first) - frames to len(first) - 1; none of it is purely either one.
    """
    head = list(first)
    tail = iter(second)
    yield from head[: len(head) - frames]
    for k, (a, b) in enumerate(zip(head[len(head) - frames :], islice(tail, frames), strict=True)):
        share = (k + 1) / (frames + 1)
        yield cv2.addWeighted(a, 1 - share, b, share, 0)
    yield from tail


def slide(image: Frame, frames: int) -> Iterator[Frame]:
    """A still picture for `frames` frames."""
    for _ in range(frames):
        yield image


def letterbox(
    image: Frame,
    top: float = 0.0,
    bottom: float = 0.0,
    left: float = 0.0,
    right: float = 0.0,
    *,
    level: int = 0,
) -> Frame:
    """`image` squeezed between bars of grey `level`, given as parts of its height and width; same size."""
    height, width = image.shape[:2]
    y0, y1 = round(height * top), height - round(height * bottom)
    x0, x1 = round(width * left), width - round(width * right)
    framed = np.full_like(image, level)
    framed[y0:y1, x0:x1] = cv2.resize(image, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return framed
