"""Interlaced and telecined sources: what they are found to be, and the pictures that are made of them.

The truth: each moment of a scene has a number, which is burnt into both of its fields. The fields are woven
here, by the definition of each standard. PyAV's own reading gives the frames as they are stored.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from curation.config.schema import Config, Cut, Run
from curation.decode import cut, segments, woven
from curation.decode.pixels.fields import Found
from curation.decode.video import Video
from tests import render
from tests.curation.helpers import decode, measure, rescore

W, H = 320, 240
NTSC = Fraction(30000, 1001)
INTERLACED = {"flags": "+ilme+ildct"}
Picture = Callable[[int], np.ndarray]


def number(moment: int) -> int:
    """The number of a moment. Every second one is not always even: its last bit would be a still stripe."""
    return moment + moment // 2


def scene(per_second: float, speed: float = 0.2, size: tuple[int, int] = (W, H), seed: int = 1) -> Picture:
    """A picture for each moment: a ground that moves by `speed` widths per second, and its number."""
    ground = render.texture(seed, size[1], size[0], slope=1.4)

    def picture(moment: int) -> np.ndarray:
        moved = render.shifted(ground, -moment / per_second * speed * size[0])
        return render.draw_counter(moved, number(moment))

    return picture


def weave(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    woven = top.copy()
    woven[1::2] = bottom[1::2]
    return woven


def interlaced(picture: Picture, frames: int, first: str = "top") -> Iterator[np.ndarray]:
    for k in range(frames):
        fields = picture(2 * k), picture(2 * k + 1)
        yield weave(*fields) if first == "top" else weave(*fields[::-1])


def telecined(
    picture: Picture, frames: int, *, phase: int = 0, pattern: Sequence[int] = (2, 3), first: str = "top"
) -> Iterator[np.ndarray]:
    """Each picture of the film lasts so many fields. phase: the first frame within the cycle of five."""
    lasts = itertools.cycle(pattern)
    fields = [k for k in range(2 * frames) for _ in range(next(lasts))][2 * phase :]
    for k in range(frames):
        pair = picture(fields[2 * k]), picture(fields[2 * k + 1])
        yield weave(*pair) if first == "top" else weave(*pair[::-1])


def write(path: Path, frames: Iterable[np.ndarray], fps: Fraction | int = NTSC, **options: Any) -> Path:
    return render.write_video(path, frames, fps=fps, **{"crf": 16, **options})


def as_stored(path: Path) -> list[tuple[float, np.ndarray]]:
    """(time, luma) of each frame, by PyAV."""
    with av.open(str(path)) as container:
        return [(float(f.pts * f.time_base), f.to_ndarray(format="gray")) for f in container.decode(video=0)]


def as_read(path: Path, found: Found | None) -> tuple[list[float], list[int], list[np.ndarray]]:
    """(times, numbers, luma) of the frames that measuring sees."""
    with Video(str(path), found=found) as video:
        frames = [(f.time_s, f.av.to_ndarray(format="gray")) for f in video.frames()]
    return [t for t, _ in frames], [render.read_counter(g) for _, g in frames], [g for _, g in frames]


def as_cut(path: Path, times: list[float], fps: float, fields: str | None) -> list[int]:
    """The numbers in a clip of the frames from the 12th to the 5th before the last one."""
    return [render.read_counter(image) for image in clip_of(path, times, fps, fields)]


def clip_of(path: Path, times: list[float], fps: float, fields: str | None) -> list[np.ndarray]:
    first, last = 11, len(times) - 5
    span = {"clip_id": "c", "start_s": times[first], "end_s": times[last], "frames": last - first, "fps": fps}
    request = {"uri": str(path), "spans": [span], "fields": fields}
    messages = cut.run(request | {"cut": Cut(crf=8).model_dump(), "run": Run().model_dump()})
    heads = [m for m in messages if m.head["kind"] in ("clip", "clip_failed")]
    assert [m.head["kind"] for m in heads] == ["clip"], heads[0].head
    return decode(heads[0].parts[0])


FORMS: dict[str, dict[str, Any]] = {
    "h264 flagged.mp4": {"options": {**INTERLACED, "x264-params": "tff=1"}},
    "h264 flagged.ts": {"options": {**INTERLACED, "x264-params": "tff=1"}},
    "h264 bottom.mp4": {"options": {**INTERLACED, "x264-params": "bff=1"}, "first": "bottom"},
    "not flagged.mp4": {},
    "not flagged bottom.mkv": {"first": "bottom"},
    "not flagged, small.mp4": {"crf": 30},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {**INTERLACED, "b": "8M"}, "crf": None, "fps": 25},
    "prores.mov": {
        "codec": "prores_ks",
        "pix_fmt": "yuv422p10le",
        "options": INTERLACED,
        "crf": None,
        "fps": 25,
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_interlaced_frames_show_the_moment_of_their_first_field(name: str, tmp_path: Path) -> None:
    form = dict(FORMS[name])
    first, fps = form.pop("first", "top"), form.pop("fps", NTSC)
    path = write(tmp_path / name, interlaced(scene(2 * float(fps)), 60, first), fps, **form)
    stored = as_stored(path)
    found = woven.look(str(path))
    assert found == Found("interlaced", first)  # type: ignore[arg-type]
    times, numbers, _ = as_read(path, found)
    assert times == [t for t, _ in stored]
    wanted = [number(2 * k) for k in range(60)]
    assert numbers[1:-1] == wanted[1:-1]  # the first and the last frame have no neighbour on one side
    assert as_cut(path, times, float(fps), "interlaced") == wanted[11:-5]


def test_dv_of_both_systems(tmp_path: Path) -> None:
    for size, fps, pix_fmt in (((720, 576), 25, "yuv420p"), ((720, 480), NTSC, "yuv411p")):
        frames = interlaced(scene(2 * float(fps), size=size), 24, "bottom")
        path = write(tmp_path / f"{pix_fmt}.avi", frames, fps, codec="dvvideo", pix_fmt=pix_fmt, crf=None)
        found = woven.look(str(path))
        assert found == Found("interlaced", "bottom")
        assert as_read(path, found)[1][1:-1] == [number(2 * k) for k in range(1, 23)]


CADENCES = [
    *[("top", (2, 3), phase) for phase in range(5)],
    *[("bottom", (2, 3), phase) for phase in (0, 2)],
    ("top", (2, 3, 3, 2), 1),
]


@pytest.mark.parametrize(("first", "pattern", "phase"), CADENCES)
@pytest.mark.parametrize("flagged", [True, False])
def test_telecined_film_at_every_phase(
    first: str, pattern: tuple[int, ...], phase: int, flagged: bool, tmp_path: Path
) -> None:
    """Film of 24000/1001 pictures per second in 30000/1001 frames."""
    order = {"top": "tff=1", "bottom": "bff=1"}[first]
    options = {**INTERLACED, "x264-params": order} if flagged else {}
    frames = telecined(scene(24), 100, phase=phase, pattern=pattern, first=first)
    path = write(tmp_path / "a.mp4", frames, options=options)
    found = woven.look(str(path))
    assert found == Found("telecined", first)  # type: ignore[arg-type]
    times, numbers, _ = as_read(path, found)
    start = phase * 4 // 5  # about: the film's picture that the first frame shows
    inner = slice(5, -5)  # the cadence may be broken at both ends
    pictures = [round(n * 2 / 3 + 0.01) for n in numbers]
    assert numbers[inner] == [number(p) for p in pictures[inner]]  # each picture is whole
    assert np.diff(pictures[inner]).tolist() == [1] * (len(pictures) - 11)  # none is lost or repeated
    assert abs(len(times) - 80) <= 1
    assert pictures[5] - 5 in (start - 1, start, start + 1)
    film_s = [p * 1001 / 24000 for p in pictures]
    lag = np.array(times[inner]) - film_s[inner]
    assert np.ptp(lag) < 1e-4
    assert abs(lag[0] + phase * 1001 / 30000) <= 1001 / 30000
    with Video(str(path), found=found) as video:
        assert video.info.fps == pytest.approx(24000 / 1001)
    assert as_cut(path, times, 24000 / 1001, "telecined") == numbers[11:-5]


SHIFTED: dict[str, Callable[[Picture], Iterable[np.ndarray]]] = {
    "bottom late": lambda picture: (weave(picture(k + 1), picture(k)) for k in range(60)),
    "top late": lambda picture: (weave(picture(k), picture(k + 1)) for k in range(60)),
    "24 in 25": lambda picture: telecined(picture, 60, pattern=(2,) * 11 + (3,)),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_film_whose_fields_are_shifted_is_put_together_without_loss(name: str, tmp_path: Path) -> None:
    """PAL film: the fields of a picture are in two neighbouring frames."""
    picture = scene(25)
    options = {**INTERLACED, "x264-params": "tff=1"}
    path = write(tmp_path / "a.mp4", SHIFTED[name](picture), 25, crf=4, options=options)
    found = woven.look(str(path))
    assert found is not None
    assert (found.kind, found.matched) == ("interlaced", True)
    times, numbers, grey = as_read(path, found)
    assert times == [t for t, _ in as_stored(path)]
    for seen, luma in list(zip(numbers, grey, strict=True))[2:-2]:
        frame = av.VideoFrame.from_ndarray(picture(round(seen * 2 / 3 + 0.01)), format="rgb24")
        whole = frame.to_ndarray(format="gray")
        assert np.abs(luma.astype(int) - whole).mean() < 1.2
    steps = np.diff([round(n * 2 / 3 + 0.01) for n in numbers[2:-2]]).tolist()
    assert steps.count(1) >= 50
    assert set(steps) <= {0, 1}
    assert as_cut(path, times, 25, "interlaced") == numbers[11:-5]


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_progressive_pictures_that_are_flagged_stay_as_they_are(codec: str, tmp_path: Path) -> None:
    picture = scene(30)
    options = {**INTERLACED, **({"x264-params": "tff=1"} if codec == "libx264" else {"b": "8M"})}
    crf = 16 if codec == "libx264" else None
    frames = (picture(k) for k in range(60))
    path = write(tmp_path / "a.ts", frames, codec=codec, options=options, crf=crf)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    found = woven.look(str(path))
    assert found == Found("progressive")
    times, _, grey = as_read(path, found)
    stored = as_stored(path)
    assert times == [t for t, _ in stored]
    assert all(np.array_equal(a, b) for a, (_, b) in zip(grey, stored, strict=True))


def test_of_a_mixed_source_the_interlaced_part_alone_is_changed(tmp_path: Path) -> None:
    plain, fields = scene(30), scene(60, seed=2)
    frames = itertools.chain((plain(k) for k in range(75)), interlaced(fields, 75))
    path = write(tmp_path / "a.mp4", frames, gop=30)
    found = woven.look(str(path))
    assert found == Found("interlaced", "top")
    times, numbers, grey = as_read(path, found)
    stored = as_stored(path)
    assert times == [t for t, _ in stored]
    same = [np.array_equal(a, b) for a, (_, b) in zip(grey, stored, strict=True)]
    assert all(same[:65])
    assert not any(same[75:])
    assert numbers == [number(k) for k in range(75)] + [number(2 * k) for k in range(75)]


def stripes(period: int, down: int) -> Picture:
    y = np.arange(H)[:, None, None]
    return lambda k: np.broadcast_to(
        np.where((y + down * k) % period < period / 2, 210, 40).astype(np.uint8), (H, W, 3)
    )


def bricks(down: int, along: int) -> Picture:
    y, x = np.mgrid[:H, :W]

    def picture(k: int) -> np.ndarray:
        row = (y + down * k) // 8
        joint = ((y + down * k) % 8 == 0) | ((x + along * k + row % 2 * 10) % 20 == 0)
        return np.repeat(np.where(joint, 220, 110).astype(np.uint8)[..., None], 3, axis=2)

    return picture


def noise(levels: float, tall: int) -> Picture:
    def picture(k: int) -> np.ndarray:
        grain = np.random.default_rng(k).normal(0, levels, (H // tall, W)).repeat(tall, axis=0)
        return (scene(30)(k) + grain[..., None]).clip(0, 255).astype(np.uint8)

    return picture


def edge(down: int) -> Picture:
    """A bar that falls: its edges are at odd lines, or at even lines, in every frame."""
    y = np.arange(H)[:, None, None]
    return lambda k: np.broadcast_to(
        np.where((y > 11 + down * k) & (y < 71 + down * k), 200, 40).astype(np.uint8), (H, W, 3)
    )


def little(seed: int) -> Picture:
    """A little patch that slides over a grained ground: few pixels move, and say this or that."""
    ground, patch = render.texture(seed, 128, 128), render.texture(seed + 1, 24, 30, light=(120, 90, 60))

    def picture(k: int) -> np.ndarray:
        layer, mask = np.zeros_like(ground), np.zeros_like(ground)
        layer[50:74, 20:50], mask[50:74, 20:50] = patch, 255
        moved, over = (render.shifted(image, 0.9 * k, 0.35 * k) for image in (layer, mask))
        return np.where(over > 127, moved, ground)

    return picture


LIKE_COMBS: dict[str, Picture] = {
    **{f"stripes of {p} lines, {d} down": stripes(p, d) for p, d in ((2, 0), (2, 1), (3, 1), (4, 1), (5, 2))},
    **{f"bricks, {d} down": bricks(d, 2) for d in (0, 1, 2, 3)},
    **{f"an edge, {d} down": edge(d) for d in (1, 2, 3, 4)},
    **{f"a little patch {seed}": little(seed) for seed in (1, 2)},
    "noise": noise(12, 1),
    "tall noise": noise(25, 4),
}


@pytest.mark.parametrize("name", LIKE_COMBS)
def test_fine_lines_and_noise_are_no_combs(name: str, tmp_path: Path) -> None:
    picture = LIKE_COMBS[name]
    path = write(tmp_path / "a.mp4", (picture(k) for k in range(40)))
    assert woven.look(str(path)) == Found("progressive")


def test_the_row_of_the_source_says_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", telecined(scene(24), 100))
    spans = {"min_seconds": 1, "max_seconds": 2, "trim_seconds": 0.1}
    mend = Config.model_validate({"shots": {"detector": "none"}, "spans": spans})
    keep = Config.model_validate({**mend.model_dump(mode="json"), "decode": {"fields": "keep"}})
    clips, source = measure(path, mend)
    assert (source["fields"], source["frames"]) == ("telecined", 80)
    assert source["fps"] == pytest.approx(24000 / 1001, abs=0.01)
    assert not source["is_vfr"]
    assert [c["fps"] for c in clips] == pytest.approx([24000 / 1001] * len(clips), abs=0.01)
    _, source = measure(path, keep)
    assert (source["fields"], source["frames"]) == (None, 100)


COMBED: dict[str, tuple[Iterable[np.ndarray], float]] = {
    "interlaced": (interlaced(scene(60), 90), 1.0),
    "bottom first": (interlaced(scene(60), 90, "bottom"), 1.0),
    "telecined": (telecined(scene(24), 90), 0.2),  # of each five pairs one is of two woven frames
    "progressive": ((scene(30)(k) for k in range(90)), 0.0),
    **{name: ((picture(k) for k in range(60)), 0.0) for name, picture in LIKE_COMBS.items()},
}


@pytest.mark.parametrize("name", COMBED)
def test_combing_is_the_part_of_pairs_of_two_moments(name: str, tmp_path: Path) -> None:
    frames, part = COMBED[name]
    path = write(tmp_path / "a.mp4", frames)
    plain = {
        "shots": {"detector": "none"},
        "spans": {"min_seconds": 1, "max_seconds": 3},
        "filters": {"quality": {}},
    }
    keep = Config.model_validate({**plain, "decode": {"fields": "keep"}})
    clips, _ = measure(path, keep)
    assert [c["scores"]["quality.combing"] for c in clips] == pytest.approx([part] * len(clips), abs=0.06)
    again = rescore(path, clips, keep)
    assert [again[c["clip_id"]] for c in clips] == [c["scores"] for c in clips]
    clips, _ = measure(path, Config.model_validate(plain))
    assert [c["scores"]["quality.combing"] for c in clips] == pytest.approx([0] * len(clips), abs=0.06)


@pytest.mark.parametrize("height", [2, 16, 30])
def test_pictures_of_few_lines_have_no_combs(height: int, tmp_path: Path) -> None:
    frames = render.pan(1, (64, height), fps=25, seconds=1, speed=0.3)
    path = render.write_video(tmp_path / "a.mkv", frames, fps=25)
    settings = {"shots": {"detector": "none"}, "spans": {"trim_seconds": 0}, "filters": {"quality": {}}}
    clips, _ = measure(path, Config.model_validate(settings))
    assert [c["scores"]["quality.combing"] for c in clips] == [0]


def test_still_images_have_no_combs(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(weave(scene(60)(0), scene(60)(9))).save(path)
    clips, source = measure(path, Config.model_validate({"filters": {"quality": {}}}))
    assert [c["scores"]["quality.combing"] for c in clips] == [0]
    assert source["fields"] is None


def test_such_sources_are_neither_sought_nor_measured_in_pieces(tmp_path: Path) -> None:
    """A mended frame depends on the frames before it."""
    path = write(tmp_path / "a.mp4", interlaced(scene(60), 60), gop=10)
    found = woven.look(str(path))
    with Video(str(path), found=found) as video:
        assert not video.may_seek()
    with Video(str(path), found=Found("progressive")) as video:
        assert video.may_seek()
    request = {"uri": str(path), "config": Config().model_dump(mode="json"), "from_s": None, "until_s": 1.0}
    with pytest.raises(segments.NotInPieces, match="interlaced"):
        list(segments.look(request))


def test_what_was_measured_as_it_is_is_cut_as_it_is(tmp_path: Path) -> None:
    """The sources of earlier datasets have no `fields`: their spans count the frames of the file."""
    path = write(tmp_path / "a.mp4", telecined(scene(24), 60))
    stored = as_stored(path)
    clip = clip_of(path, [t for t, _ in stored], float(NTSC), None)
    for image, (_, grey) in zip(clip, stored[11:-5], strict=True):
        assert np.abs(image.mean(axis=2) - grey).mean() < 6  # also of the woven frames


def test_the_default_has_the_hashes_of_before() -> None:
    plain, keep = Config(), Config.model_validate({"decode": {"fields": "keep"}})
    text = json.dumps(plain.model_dump(exclude={"run", "decode"}), sort_keys=True, default=str)
    assert plain.hash() == hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    assert plain.spans_hash() != keep.spans_hash()  # the spans of telecined sources are others
    assert plain.hash() != keep.hash()
