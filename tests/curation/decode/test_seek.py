"""A clip that was reached by a seek holds the pictures that a decode from the start gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation.config.schema import Cut, Run
from curation.decode import cut
from curation.decode.video import Video
from tests import render
from tests.curation.helpers import decode

SIZE = (96, 72)
FPS = 30
X264 = "keyint=60:bframes=2:scenecut=0"
STREAMS: dict[str, dict[str, Any]] = {
    "intra_refresh.mp4": {"options": {"x264-params": f"intra-refresh=1:{X264}"}},
    "intra_refresh.ts": {"options": {"x264-params": f"intra-refresh=1:{X264}"}},
    "open_gop.mp4": {"options": {"x264-params": f"open-gop=1:{X264}"}},
    "closed_gop.ts": {"options": {"x264-params": X264}},
    "hevc.mkv": {"codec": "libx265"},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "b": "4000000"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "old.flv": {"codec": "flv", "options": {"b": "4000000"}},
    "old.wmv": {"codec": "wmv2", "options": {"b": "4000000"}},
}


def _frames() -> Iterator[np.ndarray]:
    """Three shots that move by whole pixels. x264's refreshing columns are not whole after the last cut."""
    for seed in (1, 2, 3):
        ground = render.texture(seed, SIZE[1], SIZE[0], slope=1.1)
        for k in range(100):
            yield np.roll(ground, -round(((seed - 1) * 100 + k) * 0.512), axis=1)


def _written(path: Path, options: dict[str, Any]) -> Path:
    return render.write_video(path, render.counted(_frames()), fps=FPS, gop=60, **options)


def _clips(path: Path, starts: list[int], times: list[float]) -> list[list[np.ndarray]]:
    """The frames of the clips of 15 frames that begin at frames `starts`."""
    spans = [
        {"clip_id": str(k), "start_s": times[k], "end_s": times[k + 15], "frames": 15, "fps": float(FPS)}
        for k in starts
    ]
    request = {"uri": str(path), "spans": spans, "cut": Cut(crf=12).model_dump(), "run": Run().model_dump()}
    messages = [m for m in cut.run(request) if m.head["kind"] != "deadline"]
    assert all(m.head["kind"] == "clip" for m in messages), [m.head for m in messages]
    return [decode(m.parts[0]) for m in messages]


def _decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """All times and grey pictures in full range, by one decode from the start."""
    with av.open(str(path)) as container:
        frames = [(f.time, f.to_ndarray(format="gray").astype(float)) for f in container.decode(video=0)]
    return [t for t, _ in frames], [((g - 16) * 255 / 219).clip(0, 255) for _, g in frames]


def _check(path: Path, starts: list[int]) -> None:
    times, truth = _decoded(path)
    for first, pictures in zip(starts, _clips(path, starts, times), strict=True):
        assert [render.read_counter(p) for p in pictures] == list(range(first, first + 15))
        for k, picture in enumerate(pictures, first):
            grey = picture.astype(float) @ (0.299, 0.587, 0.114)
            assert np.abs(grey - truth[k]).mean() < 6, k


@pytest.mark.parametrize("name", STREAMS)
def test_the_pictures_after_a_seek_are_those_of_a_decode_from_the_start(name: str, tmp_path: Path) -> None:
    path = _written(tmp_path / name, STREAMS[name])
    for start in (170, 200, 255, 270):
        _check(path, [start])


def test_a_wrong_key_frame_is_noticed_by_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that takes every frame for a key frame: two seeks give two pictures."""

    def seek(video: Any, container: Any, time_s: float) -> None:
        container.seek(int(time_s / video._stream.time_base), stream=video._stream, backward=True)
        video._stream.codec_context.flush_buffers()
        video._decoded = video._decode(container)
        video._first = next(video._decoded, None)

    monkeypatch.setattr(Video, "_seek", seek)
    _check(_written(tmp_path / "a.mp4", STREAMS["intra_refresh.mp4"]), [270])


def test_a_source_that_leads_nowhere_is_decoded_from_its_start_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    init = Video.__init__
    monkeypatch.setattr(Video, "__init__", lambda *a, **k: (opened.append(a[1]), init(*a, **k))[1])
    monkeypatch.setattr(cut, "_SEEK_GAP_SECONDS", 1.0)
    monkeypatch.setattr(Video, "frames_from", lambda *a: iter(()))
    _check(_written(tmp_path / "a.mp4", {}), [50, 100, 150, 200, 250])
    assert len(opened) == 3  # for the headers, for the first clips, and once more after the seek
