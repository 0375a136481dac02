"""A corpus of rendered footage with known truth, which `reelmill corpus` writes.

    DIR/corpus.json    the settings; a run with the same settings continues an unfinished corpus
    DIR/videos/        NNNNN.mp4 with several scenes, NNNNN.vtt with a cue for each; copies; broken files
    DIR/held-out/      only good scenes; half of them show combinations that `videos/` never shows
    DIR/truth.json     the contents of each file; this file is written last, after all other files

The plan depends only on the settings, and a file depends only on its plan. A file appears whole or not at
all: it is first written as `_NAME` and then renamed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from av.video.stream import VideoStream

from curation.config.schema import ConfigError
from curation.corpus.draw import DEFECTS, GOOD, SEEN, STILL, UNSEEN, Content, Look, Scene, uniform

VERSION = 2  # increase it when the same settings give other files
SETTINGS, TRUTH = "corpus.json", "truth.json"
VIDEOS, HELD_OUT = "videos", "held-out"

# The length of a scene. A clip of 3 s is left after both ends are trimmed or a dissolve is removed. Two
# scenes together are shorter than 10 s.
SECONDS = (4.0, 4.9)
SHORT_SECONDS = (1.2, 2.4)
DISSOLVE_SECONDS = 0.75
SCENES = 5  # about so many scenes in each file
BROKEN = ("empty", "noise", "page", "headless", "torn")
_BT709 = 1  # AVCOL_SPC_BT709
_CRF = 12


@dataclass(frozen=True)
class Settings:
    """All settings that decide the content of a corpus. Raises `ConfigError` for a wrong value."""

    clips: int = 400  # scenes in `videos/`
    held_out: int = 48  # scenes in `held-out/`
    defects: float = 0.4  # share of `clips` with a defect
    dissolves: float = 0.5  # share of dissolves in the changes between two good scenes; the rest are cuts
    width: int = 128  # pixels
    height: int = 128
    fps: int = 16
    train_side: int = 32  # pixels
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            (self.clips < 4, f"--clips {self.clips}: there must be 4 or more"),
            (self.held_out < 0, f"--held-out {self.held_out}: a number of scenes, 0 or more"),
            (not 0 <= self.defects <= 0.5, f"--defects {self.defects:g}: a part of the clips, 0 to 0.5"),
            (not 0 <= self.dissolves <= 1, f"--dissolves {self.dissolves:g}: a part of the changes, 0 to 1"),
            (
                bool(self.width % 2 or self.height % 2) or min(self.width, self.height) < 64,
                f"--size {self.width}x{self.height}: even sides, of 64 pixels or more",
            ),
            (not 8 <= self.fps <= 60, f"--fps {self.fps}: 8 to 60"),
            (
                not 16 <= self.train_side <= min(self.width, self.height),
                f"--train-side {self.train_side}: 16 to the shorter side, {min(self.width, self.height)}",
            ),
        ]
        for is_wrong, message in wrong:
            if is_wrong:
                raise ConfigError(message)

    @property
    def look(self) -> Look:
        return Look(self.width, self.height, self.fps, self.train_side)


@dataclass(frozen=True)
class File:
    """One planned file.

    dissolves: `dissolves[i]` says whether scene i + 1 begins with a dissolve.
    copy_of: the name of the file that this file copies. broken: the kind of damage (`BROKEN`).
    Copies and broken files keep the scenes from which their bytes are made.
    """

    name: str  # relative to the corpus
    scenes: tuple[Scene, ...]
    dissolves: tuple[bool, ...]
    copy_of: str | None = None
    broken: str | None = None

    @property
    def starts(self) -> list[int]:
        """The first frame of each scene, and at the end the number of frames.

        With a dissolve, the first frame of a scene is in the middle of the dissolve.
        """
        return list(itertools.accumulate((scene.frames for scene in self.scenes), initial=0))


# ---------------------------------------------------------------------------------------------------
# The plan
# ---------------------------------------------------------------------------------------------------


def plan(settings: Settings) -> list[File]:
    """All files, in order of their names."""
    files = _ordinary(settings)
    return files + (_copies_and_broken(files, settings) if settings.defects else []) + _held_out(settings)


def _copies_and_broken(ordinary: Sequence[File], settings: Settings) -> list[File]:
    """Copies and broken files, with numbers after the last number of `ordinary`.

    A build takes the first of several equal files by name, so it takes the original and not the copy.
    """
    rng = random.Random(f"corpus extra {settings.seed}")
    count = max(1, settings.clips // 50)
    # Each kind of damage occurs at least once. Only one file is empty, because two would be copies.
    ways = itertools.islice(itertools.chain(BROKEN, itertools.cycle(BROKEN[1:])), max(count, len(BROKEN)))
    files = [dataclasses.replace(rng.choice(ordinary), broken=way) for way in ways]
    for original in rng.sample(ordinary, min(count, len(ordinary))):
        files.append(dataclasses.replace(original, copy_of=original.name))
    return [
        dataclasses.replace(file, name=_name(VIDEOS, number))
        for number, file in enumerate(files, len(ordinary))
    ]


def _name(folder: str, number: int) -> str:
    return f"{folder}/{number:05}.mp4"


def _ordinary(settings: Settings) -> list[File]:
    """The files of `videos/` without copies and broken files.

    After each scene with a defect comes a good scene, because a cut between two black scenes is not visible.
    """
    rng = random.Random(f"corpus {settings.seed}")
    bad = [DEFECTS[k % len(DEFECTS)] for k in range(int(settings.clips * settings.defects))]
    small, bad = bad.count("small"), [kind for kind in bad if kind != "small"]
    good = settings.clips - small - len(bad)
    units = [[kind, GOOD] for kind in bad] + [[GOOD]] * (good - len(bad))
    rng.shuffle(units)
    groups = _grouped(units) + _grouped([["small"]] * small)
    rng.shuffle(groups)
    contents = _cycle(SEEN, rng)
    return [
        _file(_name(VIDEOS, number), kinds, contents, settings, rng, dissolves=True)
        for number, kinds in enumerate(groups)
    ]


def _grouped(units: Sequence[list[str]]) -> list[list[str]]:
    """Units in their order, in files of about `SCENES` scenes.

    A file has a single scene only if the units have a single scene.
    """
    total = sum(map(len, units))
    files = max(1, round(total / SCENES)) if total else 0
    found: list[list[str]] = [[] for _ in range(files)]
    count = 0
    for unit in units:
        found[min(count * files // total, files - 1)] += unit
        count += len(unit)
    return [kinds for kinds in found if kinds]


def _held_out(settings: Settings) -> list[File]:
    """Files of good scenes with hard cuts. Seen and unseen combinations alternate."""
    rng = random.Random(f"corpus held out {settings.seed}")
    contents = itertools.chain.from_iterable(
        zip(_cycle(sorted(UNSEEN, key=lambda c: c.caption), rng), _cycle(SEEN, rng), strict=False)
    )
    groups = _grouped([[GOOD]] * settings.held_out)
    return [
        _file(_name(HELD_OUT, number), kinds, contents, settings, rng, dissolves=False)
        for number, kinds in enumerate(groups)
    ]


def _cycle(contents: Sequence[Content], rng: random.Random) -> Iterator[Content]:
    """All contents again and again, each time in another order. So all contents are equally frequent."""
    while True:
        yield from rng.sample(contents, len(contents))


def _file(
    name: str,
    kinds: Sequence[str],
    contents: Iterator[Content],
    settings: Settings,
    rng: random.Random,
    *,
    dissolves: bool,
) -> File:
    scenes = []
    for place, kind in enumerate(kinds):
        content = next(contents)
        if kind == "static":
            content = dataclasses.replace(content, direction=STILL)
        seconds = rng.uniform(*(SHORT_SECONDS if kind == "short" else SECONDS))
        look = settings.look
        if kind == "small":
            look = Look(_half(look.width), _half(look.height), look.fps, look.train_side // 2)
        frames = round(seconds * settings.fps)
        scenes.append(Scene(content, kind, frames, look, (settings.seed, name, place), place))
    joins: list[bool] = []
    for before, after in itertools.pairwise(kinds):
        possible = dissolves and before == after == GOOD and not (joins and joins[-1])
        joins.append(possible and rng.random() < settings.dissolves)
    return File(name, tuple(scenes), tuple(joins))


def _half(side: int) -> int:
    return side // 4 * 2


# ---------------------------------------------------------------------------------------------------
# The truth
# ---------------------------------------------------------------------------------------------------


def truth(settings: Settings, files: Sequence[File]) -> dict[str, Any]:
    """The content of `truth.json`."""
    return {
        "version": VERSION,
        "settings": dataclasses.asdict(settings),
        "unseen": sorted(content.caption for content in UNSEEN),
        "files": [_file_truth(file, settings.fps) for file in files],
    }


def _file_truth(file: File, fps: int) -> dict[str, Any]:
    starts, look = file.starts, file.scenes[0].look
    scenes, transitions = [], []
    for k, scene in enumerate(file.scenes):
        scenes.append(
            {
                "start_s": starts[k] / fps,
                "end_s": starts[k + 1] / fps,
                "start_frame": starts[k],
                "end_frame": starts[k + 1],
                "kind": scene.kind,
                "caption": scene.content.caption,
                **dataclasses.asdict(scene.content),
                "speed": round(scene.speed, 4),
                "unseen": scene.content in UNSEEN,
            }
        )
    half = _dissolve_frames(fps) // 2
    for k, by_dissolve in enumerate(file.dissolves):
        reach = half if by_dissolve else 0
        frames = {"start_frame": starts[k + 1] - reach, "end_frame": starts[k + 1] + reach}
        times = {"start_s": frames["start_frame"] / fps, "end_s": frames["end_frame"] / fps}
        transitions.append({"type": "dissolve" if by_dissolve else "cut", **frames, **times})
    whole = file.broken is None
    return {
        "file": file.name,
        "copy_of": file.copy_of,
        "broken": file.broken,
        "width": look.width,
        "height": look.height,
        "fps": fps,
        "frames": starts[-1] if whole else None,
        "scenes": scenes if whole else [],
        "transitions": transitions if whole else [],
    }


def _dissolve_frames(fps: int) -> int:
    return 2 * max(1, round(DISSOLVE_SECONDS * fps / 2))


def subtitles(file: File, fps: int) -> str:
    """WebVTT text with a cue for each scene, from the start to the end of the scene."""
    cues = [
        f"{_clock(a / fps)} --> {_clock(b / fps)}\n{scene.content.caption}\n"
        for scene, (a, b) in zip(file.scenes, itertools.pairwise(file.starts), strict=True)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"


# ---------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------


def write(
    folder: Path,
    settings: Settings,
    start: Callable[[int, int], None],
    done: Callable[[float], None],
    workers: int = 1,
) -> Path:
    """Write the corpus into `folder`, or continue an unfinished corpus. Returns the path of `truth.json`.

    start: is called once, with the number of files to write and the number of files that already exist.
    done: is called after each file, with its seconds of video.
    workers: the number of processes that render. With 1, this process renders.
    Raises `ConfigError` if `folder` holds other files or a corpus with other settings.
    """
    _claim(folder, settings)
    files = plan(settings)
    for name in (VIDEOS, HELD_OUT):
        (folder / name).mkdir(exist_ok=True)
        for left in (folder / name).glob("_*"):  # unfinished files of a run that was killed
            left.unlink()
    todo = [file for file in files if not (folder / file.name).exists()]
    start(len(todo), len(files) - len(todo))
    # Copies are written last, because their originals must exist.
    for part in ([f for f in todo if f.copy_of is None], [f for f in todo if f.copy_of is not None]):
        for file in _written(folder, part, settings.fps, min(workers, len(part))):
            done(file.starts[-1] / settings.fps if file.broken is None else 0.0)
    _write_whole(folder / TRUTH, json.dumps(truth(settings, files), indent=1).encode())
    return folder / TRUTH


def _written(folder: Path, files: Sequence[File], fps: int, workers: int) -> Iterator[File]:
    """Write the files, and yield each file after it is written."""
    if workers <= 1:
        for file in files:
            _write_file(folder, file, fps)
            yield file
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with, (os.getpid(),))
    try:
        tasks = {pool.submit(_write_file, folder, file, fps): file for file in files}
        for task in as_completed(tasks):
            task.result()
            yield tasks[task]
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """Set up a worker: the worker ignores Ctrl-C, which the parent handles, and ends when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _claim(folder: Path, settings: Settings) -> None:
    """Write the settings into `folder`. Raises `ConfigError` if `folder` has other files or settings."""
    wanted = {"version": VERSION, **dataclasses.asdict(settings)}
    stored = folder / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file, not a folder")
    if stored.is_file():
        try:
            found = json.loads(stored.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(
                f"{stored}: not the settings of a corpus ({error}); take another folder"
            ) from error
        known = found if isinstance(found, dict) else {}
        differing = [
            f"{key} {known.get(key)} -> {value}" for key, value in wanted.items() if known.get(key) != value
        ]
        if differing:
            raise ConfigError(
                f"{folder} holds a corpus with other settings ({'; '.join(differing)}); take another folder, "
                "or the same settings"
            )
        return
    if folder.is_dir() and any(name.name != f"_{SETTINGS}" for name in folder.iterdir()):
        raise ConfigError(f"{folder} holds something else: take an empty or a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(stored, json.dumps(wanted, indent=1).encode())


def _write_file(folder: Path, file: File, fps: int) -> None:
    """Write one file. The captions are written before the video, so a video always has its captions."""
    path = folder / file.name
    if file.copy_of is not None:
        _write_whole(path.with_suffix(".vtt"), (folder / file.copy_of).with_suffix(".vtt").read_bytes())
        _write_whole(path, (folder / file.copy_of).read_bytes())
        return
    if file.broken is not None:
        _write_whole(path, _broken(folder, file, fps))
        return
    _write_whole(path.with_suffix(".vtt"), subtitles(file, fps).encode())
    aside = path.with_name(f"_{path.name}")
    try:
        _encode(aside, pictures(file, fps), fps)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _write_whole(path: Path, data: bytes) -> None:
    aside = path.with_name(f"_{path.name}")
    try:
        aside.write_bytes(data)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def pictures(file: File, fps: int) -> Iterator[np.ndarray]:
    """The frames of a file, (H, W, 3) uint8 each. During a dissolve both scenes continue to move."""
    frames = _dissolve_frames(fps)
    for i, scene in enumerate(file.scenes):
        for k in range(scene.frames):
            picture = scene.picture(k)
            to_end = scene.frames - k  # 1 for the last frame
            if i < len(file.dissolves) and file.dissolves[i] and to_end <= frames // 2:
                share = (frames // 2 - to_end + 1) / (frames + 1)
                picture = _blend(picture, file.scenes[i + 1].picture(-to_end), share)
            elif i > 0 and file.dissolves[i - 1] and k < frames // 2:
                share = (frames // 2 + k + 1) / (frames + 1)
                before = file.scenes[i - 1]
                picture = _blend(before.picture(before.frames + k), picture, share)
            yield picture


def _blend(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    return cv2.addWeighted(first, 1 - share, second, share, 0)


def _encode(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    """Write H.264 in mp4, yuv420p, BT.709, nearly without loss. The same frames give the same bytes."""
    first = next(frames)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # Without mbtree=0 equal frames sometimes give other bytes if the sides are not multiples of 16.
        options = {"crf": str(_CRF), "preset": "medium", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # the same bytes on every machine
        context.time_base = Fraction(1, fps)
        # The colours are declared, because players would guess BT.601 for small pictures.
        context.color_range = ColorRange.MPEG
        context.colorspace = _BT709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        for k, image in enumerate(itertools.chain([first], frames)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            )
            frame.pts, frame.time_base = k, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _broken(folder: Path, file: File, fps: int) -> bytes:
    """Bytes that are not a video.

    empty: no bytes. noise: random bytes. page: the error page of a web server. headless: pictures without the
    index. torn: the end of the index and all pictures are missing.
    """
    if file.broken == "empty":
        return b""
    if file.broken == "noise":
        return bytes(int(256 * uniform("noise", file.name, k)) for k in range(20_000))
    if file.broken == "page":
        page = "<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found: {}</body></html>\n"
        return page.format(file.name).encode()
    path = folder / file.name
    aside = path.with_name(f"_{path.name}")
    try:
        _encode(aside, itertools.islice(pictures(file, fps), 2 * fps), fps)
        data = aside.read_bytes()
    finally:
        aside.unlink(missing_ok=True)
    index = data.index(b"moov") - 4  # the index is before the pictures
    end = index + int.from_bytes(data[index : index + 4], "big")
    return data[:index] + data[end:] if file.broken == "headless" else data[: (index + end) // 2]
