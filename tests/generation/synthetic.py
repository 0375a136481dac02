"""Small datasets of shards in the schema of curation: rendered clips, with captions that describe them.

A caption is such as "a striped red square moving left": texture, colour, shape and direction are drawn for
each clip. Many rows may share the bytes of a few clips, so that thousands of rows are written in a second.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.container import OutputContainer
from av.video.stream import VideoStream

from curation.store.schema import SCORE_COLUMNS, SHARDS

Row = dict[str, Any]

TEXTURES = ("plain", "striped", "checked")
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230), "yellow": (230, 220, 50)}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEED = 0.4  # frame widths per second


@dataclass(frozen=True)
class Content:
    texture: str
    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        return f"a {self.texture} {self.colour} {self.shape} moving {self.direction}"


def contents(count: int, seed: int = 0) -> list[Content]:
    pick = random.Random(seed).choice
    return [
        Content(pick(TEXTURES), pick(list(COLOURS)), pick(SHAPES), pick(list(DIRECTIONS)))
        for _ in range(count)
    ]


def render_clip(what: Content, frames: int, width: int, height: int, fps: float) -> np.ndarray:
    """A clip (T, H, W, 3) uint8. A shape, a third of the frame wide, is in the middle at half time."""
    y, x = np.mgrid[:height, :width].astype(float)
    background = 90 + 30 * (x / width) + 30 * (y / height)
    dx, dy = DIRECTIONS[what.direction]
    pictures = []
    for k in range(frames):
        way = SPEED * width * (k - (frames - 1) / 2) / fps
        u = (x - width / 2 - dx * way) / (width / 6)
        v = (y - height / 2 - dy * way) / (width / 6)
        inside = {
            "circle": u * u + v * v <= 1,
            "square": np.maximum(abs(u), abs(v)) <= 0.9,
            "triangle": (v <= 0.9) & (abs(u) <= (v + 1.1) / 2),
        }[what.shape]
        stripes = np.sin(u * 9) > 0
        light = {"plain": inside, "striped": stripes, "checked": stripes ^ (np.sin(v * 9) > 0)}[what.texture]
        shade = np.where(light, 1.0, 0.45)[..., None]
        colour = np.array(COLOURS[what.colour]) * shade
        pictures.append(np.where(inside[..., None], colour, background[..., None]))
    return np.stack(pictures).round().astype(np.uint8)


def encode(pictures: np.ndarray, fps: float, crf: int = 14) -> bytes:
    """An mp4 in H.264 with a constant frame rate, as the cutter makes it."""
    buffer = io.BytesIO()
    with cast(OutputContainer, av.open(buffer, "w", "mp4")) as out:
        options = {"preset": "veryfast", "crf": str(crf), "x264-params": "mbtree=0"}
        stream = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def row(number: int, mp4: bytes, frames: int, fps: float, width: int, height: int, **columns: Any) -> Row:
    """A row of a shard. A row of one frame is an image. `columns` replace the default columns."""
    image = frames == 1
    clip_id = hashlib.blake2b(str(number).encode(), digest_size=12).hexdigest()
    scores = dict.fromkeys(SCORE_COLUMNS) | {
        "motion.speed": None if image else SPEED,
        "aesthetics.mean": 4 + 3 * random.Random(number).random(),
    }
    return {
        "clip_id": clip_id,
        **video(mp4),
        "caption": f"clip number {number}",
        "captions": [],
        "width": width,
        "height": height,
        "fps": None if image else float(fps),
        "frames": frames,
        "duration_s": 0.0 if image else frames / fps,
        **scores,
        "source_id": "s",
        "uri": "rendered",
        "start_s": 0.0,
        "end_s": 0.0 if image else frames / fps,
        "extra": None,
        "config_hash": "c",
        **columns,
    }


def video(mp4: bytes) -> Row:
    """The columns of a row that hold its clip: the bytes, and their hash."""
    video_hash = hashlib.blake2b(mp4, digest_size=16).hexdigest()
    return {"video": {"bytes": mp4, "path": None}, "video_hash": video_hash}


def write_shards(folder: Path, rows: Sequence[Row], shards: int = 2, rows_per_group: int = 4) -> Path:
    """Write the rows in order to FOLDER/shards/shard-0000k.parquet. Returns `folder`."""
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    for k in range(shards):
        part = list(rows[len(rows) * k // shards : len(rows) * (k + 1) // shards])
        pq.write_table(
            pa.Table.from_pylist(part, schema=SHARDS),
            folder / "shards" / f"shard-{k:05d}.parquet",
            row_group_size=rows_per_group,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )
    return folder


def write_dataset(
    folder: Path,
    clips: int = 16,
    *,
    images: int = 0,
    frames: int = 17,
    fps: float = 8.0,
    width: int = 64,
    height: int = 48,
    distinct: int = 32,
    shards: int = 2,
    rows_per_group: int = 4,
    seed: int = 0,
    change: Callable[[int, Row], Row] | None = None,
) -> Path:
    """Write a dataset of `clips` captioned videos and `images` captioned pictures, in mixed order.

    distinct: the largest number of rendered clips. Further rows have the same bytes and captions, but other
    ids. change: maps k and row k to a changed row. Returns `folder`.
    """
    videos, pictures = [], []
    for what in contents(min(distinct, clips), seed):
        mp4 = encode(render_clip(what, frames, width, height, fps), fps)
        videos.append((what.caption, mp4, frames))
    for what in contents(min(distinct, images), seed + 1):
        mp4 = encode(render_clip(what, 1, width, height, fps), fps)
        pictures.append((what.caption.rsplit(" moving", 1)[0], mp4, 1))
    kinds = [videos[k % len(videos)] for k in range(clips)]
    kinds += [pictures[k % len(pictures)] for k in range(images)]
    random.Random(seed).shuffle(kinds)
    rows = [
        row(1_000_000 * seed + k, mp4, count, fps, width, height, caption=caption)
        for k, (caption, mp4, count) in enumerate(kinds)
    ]
    if change:
        rows = [change(k, r) for k, r in enumerate(rows)]
    return write_shards(folder, rows, shards, rows_per_group)
