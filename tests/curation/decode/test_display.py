"""A picture is shown as players show it: turned, mirrored, or both.

The truth: four corners of four colours, and where ffmpeg's documentation and ISO 14496-12 put them: a matrix
(a b u, c d v, x y w) takes the stored point (x, y) to (a x + c y, b x + d y).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from curation.config.schema import Cut, Run
from curation.decode import cut
from curation.decode.video import Video
from tests.curation.helpers import decode

W, H = 96, 64
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (235, 235, 235)}
# All eight matrices that take the axes to the axes: a, b, c, d.
MATRICES = [
    *[(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)],
    *[(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)],
]


def _stored() -> np.ndarray:
    image = np.empty((H, W, 3), np.uint8)
    image[: H // 2, : W // 2], image[: H // 2, W // 2 :] = COLOURS["red"], COLOURS["green"]
    image[H // 2 :, : W // 2], image[H // 2 :, W // 2 :] = COLOURS["blue"], COLOURS["white"]
    return image


def _displayed(matrix: tuple[int, int, int, int]) -> dict[tuple[int, int], str]:
    """(right?, lower?) on the display -> colour, by the definition of the matrix."""
    a, b, c, d = matrix
    stored = {(-1, -1): "red", (1, -1): "green", (-1, 1): "blue", (1, 1): "white"}
    return {(int(a * x + c * y > 0), int(b * x + d * y > 0)): name for (x, y), name in stored.items()}


def _corners(image: np.ndarray) -> dict[tuple[int, int], str]:
    h, w = image.shape[:2]
    found = {}
    for right, lower in itertools.product((0, 1), repeat=2):
        pixel = image[h // 4 + lower * h // 2, w // 4 + right * w // 2].astype(int)
        found[right, lower] = min(COLOURS, key=lambda n: np.abs(pixel - COLOURS[n]).sum())
    return found


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_every_display_matrix(matrix: tuple[int, int, int, int], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    a, b, c, d = (n << 16 for n in matrix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for k in range(5):
            frame = av.VideoFrame.from_ndarray(_stored(), format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        if not next(container.decode(video=0)).side_data.get("DISPLAYMATRIX") and matrix != (1, 0, 0, 1):
            pytest.skip(f"{suffix} keeps no such matrix")
    wanted = _displayed(matrix)
    w, h = (H, W) if matrix[0] == 0 else (W, H)
    with Video(str(path)) as video:
        frame = next(video.frames())
        assert (video.info.width, video.info.height) == (w, h)
        assert _corners(frame.rgb(w, h)) == wanted
        assert _corners(frame.rgb(w // 2, h // 2)) == wanted
        light = frame.gray(w, h)
        bright = max(
            itertools.product((0, 1), repeat=2),
            key=lambda p: light[h // 4 + p[1] * h // 2, w // 4 + p[0] * w // 2],
        )
        assert wanted[bright] == "white"
    span = {"clip_id": "c", "start_s": 0.0, "end_s": 0.2, "frames": 5, "fps": 25.0}
    request = {"uri": str(path), "spans": [span], "cut": Cut().model_dump(), "run": Run().model_dump()}
    (clip,) = (m for m in cut.run(request) if m.head["kind"] == "clip")
    assert (clip.head["width"], clip.head["height"]) == (w, h)
    assert _corners(decode(clip.parts[0])[0]) == wanted
