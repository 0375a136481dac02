"""`borders`: the part of the frame that is black bars, above and below (letterbox) or left and right
(pillarbox)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from filters.base import Column, Frames, Sampling, Scorer, uniform

DEPTH = 6  # rows: the edge of a bar is searched within so many


@dataclass(frozen=True)
class Borders(Scorer):
    """Part of the frame area covered by dark bars, from the brightest value of each pixel over the frames.

    A bar is a run of rows (or columns) that starts at an edge of the frame and meets three conditions:

    - Its first row is dark: the row's median luma is `dark` or less.
    - The bar is even: 99 % of its pixels differ from that median by at most `even`, 95 % by half of `even`.
    - The bar ends in a straight edge: within `DEPTH` rows, at least `edge` of the columns that show any
      picture become brighter by `step` or more.

    The second and third conditions separate a bar from a night sky or a dark floor. A step in one frame is
    enough, so a dark frame does not hide a bar. These bars are not found: bars narrower than two rows; white,
    coloured or blurred bars; bars with subtitles or noise on them; bars around a picture whose edge is nearly
    black. A clip has no bars (0) if the whole clip is black, or if its picture fills less than a quarter of
    the width or height. `quality` measures such clips.
    """

    frames: int = 4
    long_side: int = 512
    dark: int = 24  # luma of 255
    even: int = 8  # luma of 255
    step: int = 8  # luma of 255
    edge: float = 0.75  # part of the bar's length

    columns: ClassVar[tuple[Column, ...]] = (
        Column("borders.fraction", "part of the frame area", (0, 1), "covered by black bars"),
    )
    cost_ms: ClassVar[float] = 2  # 2 ms per clip

    @property
    def sampling(self) -> Sampling:
        return uniform(self.frames, long_side=self.long_side, color="gray")

    def measure(self, frames: Frames) -> float:
        images = frames.images
        top, bottom, left, right = self.bars(np.max(np.stack(images), axis=0))
        height, width = images[0].shape
        return 1.0 - (height - top - bottom) * (width - left - right) / (height * width)

    def bars(self, brightest: np.ndarray) -> tuple[int, int, int, int]:
        """(top, bottom, left, right): the rows and columns of an (H, W) uint8 frame that are bars."""
        if np.percentile(brightest, 99.5) <= self.dark:  # no picture
            return 0, 0, 0, 0
        across = brightest.T
        top, bottom = self._rows(brightest), self._rows(brightest[::-1])
        left, right = self._rows(across), self._rows(across[::-1])
        height, width = brightest.shape
        if height - top - bottom < height / 4 or width - left - right < width / 4:  # words on black
            return 0, 0, 0, 0
        return top, bottom, left, right

    def _rows(self, image: np.ndarray) -> int:
        """The number of rows from the top of (H, W) uint8 that are a bar."""
        level = float(np.median(image[0]))
        if level > self.dark:
            return 0
        picture = np.percentile(image, 99, axis=1) > level + self.even
        rows = int(picture.argmax()) if picture.any() else 0
        if rows < 2 or np.percentile(np.abs(image[: max(2, rows - DEPTH)] - level), 95) > self.even / 2:
            return 0
        # The codec's ringing can make the last rows of the bar uneven, so the edge is searched nearby.
        shown = image.max(axis=0) >= level + self.step  # the other columns lie under bars at the sides
        near = image[rows - 1 : rows + DEPTH, shown].astype(int)
        stepped = (np.maximum.accumulate(near[1:] - near[0], axis=0) >= self.step).mean(axis=1)
        if stepped[-1] < self.edge:
            return 0
        return rows + int((stepped >= self.edge / 2).argmax())
