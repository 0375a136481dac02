"""Motion: known speeds are measured, and the number is the same at every size, frame rate and codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, pairwise, repeat
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from filters.base import ClipInfo, Frames, Pair, Sampling
from filters.motion import Motion, mean_shift
from tests.render import dissolve, pan, slide, texture, write_video

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "video"
SIZES = [(426, 240), (640, 360), (854, 480), (1280, 720), (1920, 1080)]
CODECS = [("libx264", ".mp4"), ("libvpx-vp9", ".webm"), ("mpeg4", ".mp4")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def sampled_pairs(path: Path, sampling: Sampling) -> list[Pair]:
    """The pairs that `sampling` asks for: the frames nearest to t and t + step_s, for t = k / per_second.

    A moment gives no pair if the same frame is nearest to both times.
    """
    times, grey = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="gray")
            times.append(frame.time)
            size = sampling.size(image.shape[1], image.shape[0])
            grey.append(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
    seconds = np.array(times) - times[0]
    found = []
    for k in range(round(seconds[-1] * sampling.per_second) + 1):
        t = k / sampling.per_second
        i, j = (int(np.abs(seconds - at).argmin()) for at in (t, t + sampling.step_s))
        if j > i:
            found.append(Pair(grey[i], grey[j], float(seconds[j] - seconds[i])))
    return found


def clip(pairs: list[Pair]) -> Frames:
    return Frames(ClipInfo(duration_s=1, frames=2, fps=None, width=1, height=1), pairs=pairs)


def speed(path: Path) -> float:
    scorer = Motion()
    [scores] = scorer([clip(sampled_pairs(path, scorer.sampling))])
    value = scores.values["motion.speed"]
    assert value is not None
    return value


def spread(values: list[float]) -> float:
    return (max(values) - min(values)) / float(np.mean(values))


@pytest.mark.parametrize("slope", [1.1, 1.6], ids=["crisp", "soft"])
def test_pans_score_their_speed_and_faster_pans_score_higher(tmp_path: Path, slope: float) -> None:
    truth = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0]
    read = []
    for v in truth:
        frames = pan(3, (640, 360), fps=24, seconds=1.0, speed=v, angle=20, slope=slope)
        read.append(speed(write_video(tmp_path / "pan.mp4", frames, fps=24)))
    assert all(a < b for a, b in pairwise(read)), read
    assert read == pytest.approx(truth, rel=0.08)


@pytest.mark.parametrize("contrast", [0.3, 0.5])
def test_a_fast_pan_over_a_soft_background_with_a_flat_object_is_fast(contrast: float) -> None:
    """The shift of the whole picture is compared on the original pictures. The search changes its inputs."""
    soft = texture(5, 144, 256, slope=1.3).mean(2)
    picture = 128 + contrast * (soft - soft.mean())
    cv2.circle(picture, (90, 70), 34, 105, -1)
    step = round(0.95 * 0.1 * 256)
    frames = [np.roll(picture, k * step, 1).round().astype(np.uint8) for k in range(10)]
    pairs = [Pair(a, b, 0.1) for a, b in pairwise(frames)]
    value = Motion()([clip(pairs)])[0].values["motion.speed"]
    assert value == pytest.approx(step / 25.6, rel=0.2)


@pytest.mark.parametrize(
    ("codec", "crf"), [("libx264", 23), ("libx264", 40), ("libvpx-vp9", 50), ("mpeg4", 16), ("mjpeg", 12)]
)
def test_a_still_slide_does_not_move(tmp_path: Path, codec: str, crf: int) -> None:
    words = np.full((720, 1280, 3), 90, np.uint8)
    for row, text in enumerate(["Results", "growth 10 %", "costs 5 %"]):
        cv2.putText(words, text, (80, 150 + row * 150), cv2.FONT_HERSHEY_SIMPLEX, 3, (255, 255, 255), 6)
    ramp = np.repeat(np.linspace(0, 255, 1280).astype(np.uint8)[None, :, None], 720, 0).repeat(3, 2)
    for image in (words, ramp, texture(4, 720, 1280)):
        path = write_video(tmp_path / "slide.mkv", slide(image, 24), codec=codec, crf=crf)
        assert speed(path) < 0.002


def test_grain_on_a_still_wall_does_not_move() -> None:
    rng = np.random.default_rng(0)
    wall = [np.clip(90 + rng.normal(0, 3, (144, 256)), 0, 255).astype(np.uint8) for _ in range(11)]
    pairs = [Pair(a, b, 0.1) for a, b in pairwise(wall)]
    value = Motion()([clip(pairs)])[0].values["motion.speed"]
    assert value is not None
    assert value < 0.005


def test_a_rendered_pan_scores_the_same_at_any_size_rate_and_codec(tmp_path: Path) -> None:
    def render(size: tuple[int, int], fps: float) -> Iterator[np.ndarray]:
        return pan(5, size, fps=fps, seconds=1.5, speed=0.15, angle=30)

    read = {f"{w}x{h}": speed(write_video(tmp_path / "p.mp4", render((w, h), 24))) for w, h in SIZES}
    for fps in (12, 24, 48):
        path = write_video(tmp_path / "p.mp4", render((640, 360), fps), fps=fps)
        read[f"{fps} fps"] = speed(path)
    for codec, suffix in CODECS:
        path = write_video(tmp_path / f"p{suffix}", render((640, 360), 24), codec=codec)
        read[codec] = speed(path)
    assert spread(list(read.values())) < 0.05, read
    assert np.mean(list(read.values())) == pytest.approx(0.15, rel=0.02)


@pytest.mark.parametrize(("name", "frames"), [("bigbuckbunny.mp4", 50), ("friday.mp4", 50)])
def test_a_real_clip_scores_the_same_at_any_size_rate_and_codec(
    tmp_path: Path, name: str, frames: int
) -> None:
    if not (SHARED / name).exists():
        pytest.skip("no shared footage here")
    with av.open(str(SHARED / name)) as container:
        fps = float(container.streams.video[0].average_rate or 0)
        decoded = container.decode(video=0)
        source = [next(decoded).to_ndarray(format="rgb24") for _ in range(frames)]

    def at(size: tuple[int, int]) -> Iterator[np.ndarray]:
        smaller = size[0] < source[0].shape[1]
        how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        return (cv2.resize(f, size, interpolation=how) for f in source)

    small = list(at((640, 360)))
    read = {f"{w}x{h}": speed(write_video(tmp_path / "r.mp4", at((w, h)), fps=fps)) for w, h in SIZES}
    doubled = chain.from_iterable(repeat(f, 2) for f in small)
    read["doubled"] = speed(write_video(tmp_path / "r.mp4", doubled, fps=2 * fps))
    sixty = [small[min(int(k / 60 * fps), frames - 1)] for k in range(int(frames / fps * 60))]
    read["60 fps"] = speed(write_video(tmp_path / "r.mp4", sixty, fps=60))
    read["halved"] = speed(write_video(tmp_path / "r.mp4", small[::2], fps=fps / 2))
    for codec, suffix in CODECS:
        path = write_video(tmp_path / f"r{suffix}", small, fps=fps, codec=codec)
        read[codec] = speed(path)
    assert spread(list(read.values())) < 0.05, read


def test_frames_repeated_to_a_higher_rate_change_nothing(tmp_path: Path) -> None:
    """A generated 8 fps clip is stored at 24 and 60 fps, so most neighbouring frames are equal."""
    if not (SHARED / "kitten.mp4").exists():
        pytest.skip("no shared footage here")
    with av.open(str(SHARED / "kitten.mp4")) as container:
        source = [f.reformat(640, 426, "rgb24").to_ndarray() for f in container.decode(video=0)]
    read = []
    for fps in (8, 24, 60):
        frames = [source[k * 8 // fps] for k in range(len(source) * fps // 8)]
        read.append(speed(write_video(tmp_path / "k.mp4", frames, fps=fps)))
    assert spread(read) < 0.05, read


def test_variable_frame_rate_uses_the_true_times(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    kept = np.sort(rng.choice(48, 30, replace=False))  # frames of two seconds at 24 fps
    frames = list(pan(5, (640, 360), fps=24, seconds=2.0, speed=0.2))
    times = [1.075 + float(k) / 24 for k in kept]
    path = write_video(tmp_path / "v.mp4", (frames[k] for k in kept), pts=times)
    assert speed(path) == pytest.approx(0.2, rel=0.05)


def test_a_clip_without_pairs_has_no_number() -> None:
    assert Motion()([clip([])])[0].values == {"motion.speed": None}


@pytest.mark.parametrize("shape", [(1, 256), (5, 256), (455, 256), (144, 256)])
@pytest.mark.parametrize("change", [lambda a: np.roll(a, 3, 1), lambda a: 255 - a, np.zeros_like])
def test_any_shape_gives_a_finite_number(
    shape: tuple[int, int], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    first = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.isfinite(mean_shift(first, change(first), 128))


def test_a_dissolve_of_two_slides_moves_little(tmp_path: Path) -> None:
    frames = dissolve(slide(texture(1, 360, 640), 24), slide(texture(2, 360, 640), 24), 12)
    assert speed(write_video(tmp_path / "d.mp4", frames)) < 0.2
