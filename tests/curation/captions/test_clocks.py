"""A clip gets the subtitles that a player shows over its pictures, wherever the times of its file begin.

Every frame has its number burnt in, and the subtitles say which frames they are shown over. So the truth is
what is read off the pictures of the clips."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from curation import pipeline
from curation.audit.verify import verify
from curation.commands import caption, select
from curation.config.load import load_config
from curation.config.schema import Config
from curation.driver.prepare import settle
from curation.progress import Progress
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from curation.store.schema import SOURCES
from tests import render
from tests.curation.helpers import decode
from tests.curation.inline import Inline

FPS, SECONDS, PER_CUE = 10, 6, 20  # frames per second; seconds; frames of each cue


def config(*overrides: str) -> Config:
    over = ["spans.min_seconds=1", "spans.max_seconds=2", "spans.trim_seconds=0", "shots.detector=none"]
    text = "filters: {duration: {}}\nrules: {}\ncut: {preset: ultrafast}"
    return load_config(text, [*over, *overrides])


def numbered() -> list[np.ndarray]:
    frames = render.pan(3, (96, 72), fps=FPS, seconds=SECONDS, speed=0.05)
    return list(render.counted(frames))


def cues() -> list[tuple[float, float, str]]:
    n = FPS * SECONDS
    return [(k / FPS, (k + PER_CUE) / FPS, f"frames from {k}") for k in range(0, n, PER_CUE)]


def clock(seconds: float) -> str:
    return f"00:00:{seconds:06.3f}".replace(".", ",")


def as_srt() -> str:
    return "".join(f"{i}\n{clock(a)} --> {clock(b)}\n{t}\n\n" for i, (a, b, t) in enumerate(cues(), 1))


def as_json() -> str:
    return json.dumps([{"start": a, "end": b, "caption": t} for a, b, t in cues()])


def from_s(start_s: float) -> Callable[[Path], object]:
    pts = [start_s + k / FPS for k in range(FPS * SECONDS)]
    return lambda path: render.write_video(path, numbered(), fps=FPS, pts=pts)


def late_pictures(path: Path) -> None:
    """Sound from the beginning, and pictures from 1 s on: the file begins with its sound."""
    with av.open(str(path), "w") as out:
        sound = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        video = out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 96, 72, "yuv420p"
        video.codec_context.time_base = Fraction(1, FPS)
        for k in range(SECONDS + 1):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts = 8000, 8000 * k
            out.mux(sound.encode(silence))
        for k, image in enumerate(numbered()):
            picture = av.VideoFrame.from_ndarray(image, "rgb24")
            picture.pts, picture.time_base = FPS + k, Fraction(1, FPS)
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))


def shown_over(numbers: Sequence[int], late_frames: int) -> str:
    """The cues that are shown over at least half of their own frames, or half of the clip's."""
    places = [n + late_frames for n in numbers]
    texts = []
    for start in range(0, FPS * SECONDS, PER_CUE):
        over = sum(start <= p < start + PER_CUE for p in places)
        if 2 * over >= min(PER_CUE, len(places)):
            texts.append(f"frames from {start}")
    return " ".join(texts)


def check(dataset: Dataset, clips: int = 3, late_frames: int = 0) -> None:
    rows = list(dataset.rows("shards"))
    assert len(rows) >= clips
    for row in rows:
        numbers = [render.read_counter(frame) for frame in decode(row["video"]["bytes"])]
        if numbers[0] + late_frames + PER_CUE / 2 < FPS * SECONDS:  # else the subtitles have ended
            assert row["caption"] == shown_over(numbers, late_frames)
    assert verify(dataset) == []


def built(folder: Path, out: Path, settings: Config) -> Dataset:
    dataset = Dataset(str(out))
    with Inline():
        pipeline.build(dataset, list_sources([str(folder)]), settings, Progress())
    return dataset


@pytest.mark.parametrize(
    ("name", "write", "late_frames", "suffix", "text"),
    [
        ("zero.mkv", from_s(0), 0, ".srt", as_srt),
        ("odd.mkv", from_s(7.3), 0, ".srt", as_srt),
        ("usual.ts", from_s(0), 0, ".srt", as_srt),  # FFmpeg lets a transport stream begin at 1.4 s
        ("recording.ts", from_s(20_000), 0, ".json", as_json),
        ("wraps.ts", from_s(95_440), 0, ".srt", as_srt),  # its clock begins again at 95,443.7 s
        ("pictures-later.mkv", late_pictures, FPS, ".srt", as_srt),
    ],
)
def test_subtitles_count_from_the_start_of_the_file(
    tmp_path: Path,
    name: str,
    write: Callable[[Path], object],
    late_frames: int,
    suffix: str,
    text: Callable[[], str],
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / name)
    (tmp_path / "in" / name).with_suffix(suffix).write_text(text())
    dataset = built(tmp_path / "in", tmp_path / "d", config())
    check(dataset, late_frames=late_frames)
    (source,) = dataset.rows("sources")
    with av.open(str(tmp_path / "in" / name)) as container:
        assert container.start_time is not None
        assert source["file_start_s"] == container.start_time / 1e6


def test_select_and_caption_use_the_same_clock(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    from_s(4)(tmp_path / "in" / "a.mkv")
    dataset = built(tmp_path / "in", tmp_path / "d", config("rules.duration.seconds.min=100"))
    assert list(dataset.rows("shards")) == []
    (tmp_path / "in" / "a.srt").write_text(as_srt())
    with Inline():
        select.reselect(dataset, config(), Progress(), nullcontext)
    check(dataset)
    (tmp_path / "in" / "a.srt").unlink()
    (tmp_path / "in" / "a.json").write_text(as_json().replace("frames", "numbers"))
    with Inline():
        caption.recaption(dataset, config(), Progress(), nullcontext)
    rows = sorted(dataset.rows("shards"), key=lambda row: row["start_s"])
    assert [row["caption"] for row in rows] == [f"numbers from {k}" for k in range(0, FPS * SECONDS, PER_CUE)]


def test_a_source_in_pieces_has_the_same_start(tmp_path: Path) -> None:
    from curation.decode.join import Piece, join
    from curation.decode.segments import look
    from curation.tasks.arrow import rows_of, table_of
    from curation.tasks.look import LOOKS

    from_s(4)(tmp_path / "a.mkv")
    settings = config("shots.detector=content")
    asked = {"uri": str(tmp_path / "a.mkv"), "config": settings.model_dump(mode="json")}
    message = next(m for m in look({**asked, "from_s": None, "until_s": None}) if m.head["kind"] == "piece")
    arrays = dict(zip(("times_s", "stamps", "values"), message.parts, strict=True))
    head = {k: v for k, v in message.head.items() if k != "kind"}
    spent = {"stage": "look", "worker": "w", "seconds": 0.0}
    row = {"source_id": "s", "index": 0, "piece": {**head, **arrays}, "error": None, "spent": spent}
    (travelled,) = rows_of(table_of([row], LOOKS))
    decoded, _ = join([Piece.of(travelled["piece"])], settings, 10)
    assert decoded["file_start_s"] == 4.0


def test_parts_without_the_column_are_read_as_before(tmp_path: Path) -> None:
    """And are sound. The clock of their subtitles is that of presentation times."""
    (tmp_path / "in").mkdir()
    from_s(0)(tmp_path / "in" / "a.mkv")
    (tmp_path / "in" / "a.srt").write_text(as_srt())
    dataset = built(tmp_path / "in", tmp_path / "d", config())
    (part,) = dataset.parts("sources")
    path = tmp_path / "d" / "sources" / f"{part}.parquet"
    older = pq.read_table(path).drop(["file_start_s"])
    pq.write_table(older, path, write_page_checksum=True)
    assert [row["file_start_s"] for row in dataset.rows("sources")] == [None]
    assert verify(dataset) == []
    from_s(0)(tmp_path / "in" / "b.mkv")  # a part of today beside it
    shutil.copy(tmp_path / "in" / "a.srt", tmp_path / "in" / "b.srt")
    dataset = built(tmp_path / "in", tmp_path / "d", config())
    check(dataset, clips=6)
    settle(dataset)
    with Inline():
        caption.recaption(dataset, config(), Progress(), nullcontext)
    check(dataset, clips=6)
    assert SOURCES.field("file_start_s").nullable
