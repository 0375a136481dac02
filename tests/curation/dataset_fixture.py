"""A small, complete and sound dataset, made without decoding, measuring or Ray."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.container import OutputContainer
from av.video.stream import VideoStream
from PIL import Image

from curation.config.load import validated
from curation.config.schema import Config
from curation.decode.measure import clip_id
from curation.decode.shots.spans import Span
from curation.store.dataset import Dataset
from curation.store.schema import CAPTIONS, FAILURES, SCHEMA_VERSION, SCORE_COLUMNS, SHARDS, TABLES
from curation.verdicts.judge import write_verdicts

Row = dict[str, Any]

FPS = 4.0
WIDTH, HEIGHT = 64, 48
RULES = {
    "duration.seconds": {"min": 3.0, "max": None},
    "motion.speed": {"min": 0.02, "max": 0.8},
    "aesthetics.mean": {"min": 4.5, "max": None},
}
FAILURE_KEY = "cut-1"


@dataclass(frozen=True)
class Shown:
    """One candidate clip: its source, its times, two scores, and what becomes of it."""

    source: str
    start_s: float
    end_s: float
    motion: float | None
    aesthetics: float | None
    fate: str  # accepted, failed, or the column that rejects it


CLIPS = [
    Shown("pan.mp4", 0.0, 5.0, 0.10, 5.0, "accepted"),
    Shown("pan.mp4", 5.0, 10.0, 0.20, 5.5, "accepted"),
    Shown("pan.mp4", 10.0, 12.0, 0.30, 6.0, "duration.seconds"),
    Shown("pan.mp4", 12.0, 17.0, 0.01, 5.0, "motion.speed"),
    Shown("pan.mp4", 17.0, 22.0, 0.90, 5.0, "motion.speed"),
    Shown("pan.mp4", 22.0, 27.0, 0.30, None, "aesthetics.mean"),
    Shown("city.mp4", 0.5, 5.5, 0.40, 6.0, "accepted"),
    Shown("city.mp4", 5.5, 10.5, 0.50, 5.2, "accepted"),
    Shown("city.mp4", 10.5, 15.5, 0.05, 4.0, "aesthetics.mean"),
    Shown("city.mp4", 15.5, 20.5, 0.06, 4.4, "aesthetics.mean"),
    Shown("city.mp4", 20.5, 25.5, 0.15, 4.9, "failed"),
    Shown("city.mp4", 25.5, 30.5, 0.70, 4.6, "accepted"),
    Shown("still.jpg", 0.0, 0.0, None, 5.8, "accepted"),
]
# sources 5 = measured 4 (1 a duplicate) + failed 1; clips 13 = accepted 6 + rejected 6 + failed 1
ACCEPTED = [c for c in CLIPS if c.fate == "accepted"]


def source_id(uri: str) -> str:
    return uri.encode().hex()[-24:].rjust(24, "0")


def id_of(shown: Shown, folder: str = "videos/") -> str:
    return clip_id(source_id(folder + shown.source), Span(shown.start_s, shown.end_s, 1))


def source_row(uri: str, **changed: Any) -> Row:
    row: Row = {
        "source_id": source_id(uri),
        "uri": uri,
        "fingerprint": f"print of {uri}",
        "bytes": 1_000_000,
        "container": "mov,mp4",
        "codec": "h264",
        "width": WIDTH,
        "height": HEIGHT,
        "fps": FPS,
        "is_vfr": False,
        "duration_s": 40.0,
        "frames": 160,
        "status": "measured",
        "clips": 0,
        "seconds": 4.0,
        "config_hash": "spans-1",
    }
    return row | changed


def clip_row(
    uri: str, start_s: float, end_s: float, scores: dict[str, float | None], thumbnail: bytes
) -> Row:
    is_image = start_s == end_s
    frames = 1 if is_image else round((end_s - start_s) * FPS)
    return {
        "clip_id": clip_id(source_id(uri), Span(start_s, end_s, frames)),
        "source_id": source_id(uri),
        "uri": uri,
        "start_s": start_s,
        "end_s": end_s,
        "frames": frames,
        "fps": None if is_image else FPS,
        "width": WIDTH,
        "height": HEIGHT,
        **dict.fromkeys(SCORE_COLUMNS),
        **scores,
        "embedding": None,
        "thumbnail": thumbnail,
        "keys": {"duration": "1"},
    }


def shard_row(clip: Row, caption: str | None) -> Row:
    mp4 = encode(clip["frames"], seed=round(clip["start_s"]))
    columns = ("clip_id", "width", "height", "fps", "frames", "source_id", "uri", "start_s", "end_s")
    caption_row = {"text": caption, "captioner": "sidecar", "kind": "sidecar"}
    return {
        **{k: clip[k] for k in (*columns, *SCORE_COLUMNS)},
        "video": {"bytes": mp4, "path": None},
        "caption": caption,
        "captions": [caption_row] if caption else [],
        "duration_s": 0.0 if clip["fps"] is None else clip["frames"] / clip["fps"],
        "extra": '{"licence": "CC0"}',
        "config_hash": "config-1",
        "video_hash": hash_of(mp4),
    }


@lru_cache
def encode(frames: int, *, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A tiny mp4 of a drifting gradient."""
    buffer = io.BytesIO()
    with cast(OutputContainer, av.open(buffer, "w", "mp4")) as out:
        stream = out.add_stream("libx264", rate=round(FPS), options={"preset": "ultrafast"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(frames):
            out.mux(
                stream.encode(av.VideoFrame.from_ndarray(_picture(width, height, seed + k), format="rgb24"))
            )
        out.mux(stream.encode(None))
    return buffer.getvalue()


def _picture(width: int, height: int, shift: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    bands = [(x * 3 + 9 * shift) % 256, (y * 4 + 40 * shift) % 256, (x + y + 15 * shift) % 256]
    return np.stack(bands, axis=-1).astype(np.uint8)


@lru_cache
def jpeg(seed: int, width: int = 160, height: int = 90, *, noise: bool = False) -> bytes:
    picture = _picture(width, height, seed)
    if noise:
        picture = np.random.default_rng(seed).integers(0, 256, picture.shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def config_of(rules: dict[str, Any]) -> Config:
    return validated({"filters": {"duration": {}, "motion": {}, "aesthetics": {}}, "rules": rules})


def write_manifest(dataset: Dataset, rules: dict[str, Any] = RULES) -> None:
    import json

    config = config_of(rules)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "reelmill_version": "0.1.0",
        "config": config.model_dump(mode="json"),
        "config_hash": config.hash(),
        "score_columns": list(SCORE_COLUMNS),
        "models": {"aesthetics": {"head": "laion"}},
        "created": "2025-01-02T03:04:05+00:00",
    }
    dataset.write("dataset.json", json.dumps(manifest).encode())


def build(location: str, *, folder: str = "videos/", caption: str = "a gradient drifts") -> Dataset:
    """The dataset of `CLIPS`: two videos, a still, a file that cannot be read, and a duplicate."""
    dataset = Dataset(location)
    write_manifest(dataset)
    rows: dict[str, list[Row]] = {}
    for k, shown in enumerate(CLIPS):
        is_image = shown.start_s == shown.end_s
        scores = {
            "duration.seconds": None if is_image else shown.end_s - shown.start_s,
            "motion.speed": shown.motion,
            "aesthetics.mean": shown.aesthetics,
            "quality.brightness": 0.3 + 0.01 * k,
        }
        uri = folder + shown.source
        rows.setdefault(uri, []).append(clip_row(uri, shown.start_s, shown.end_s, scores, jpeg(k)))
    pan, city, still = rows
    dataset.commit_part(
        "a0",
        [source_row(pan, clips=6), source_row(city, clips=6, duration_s=30.0, seconds=9.0)],
        [*rows[pan], *rows[city]],
    )
    failed = {"status": "failed", "stage": "open", "error": "InvalidDataError", "message": "no moov atom"}
    unknown = dict.fromkeys(
        ("container", "codec", "width", "height", "fps", "duration_s", "frames", "seconds")
    )
    dataset.commit_part(
        "b1",
        [
            source_row(still, clips=1, fps=None, duration_s=0.0, frames=1, seconds=0.1),
            source_row(f"{folder}broken.mp4", **unknown, **failed),
            source_row(f"{folder}copy.mp4", duplicate_of=source_id(pan), **unknown),
        ],
        rows[still],
    )
    clips = [c for of_source in rows.values() for c in of_source]
    fates = dict(zip((c["clip_id"] for c in clips), (s.fate for s in CLIPS), strict=True))
    failures = [
        {
            "clip_id": i,
            "stage": "cut",
            "error": "MissingFrames",
            "message": "the file has changed",
            "key": FAILURE_KEY,
        }
        for i, fate in fates.items()
        if fate == "failed"
    ]
    dataset.write_table("failures/f0.parquet", failures, FAILURES)
    kept = [c for c in clips if fates[c["clip_id"]] == "accepted"]
    captions = [f"{caption} ({k})" if c["fps"] else None for k, c in enumerate(kept)]  # the still has none
    dataset.write_table(
        "captions/sidecar-0.parquet",
        [
            {
                "clip_id": c["clip_id"],
                "captioner": "sidecar",
                "kind": "sidecar",
                "text": text,
                "key": "sidecar-1-caption",
            }
            for c, text in zip(kept, captions, strict=True)
            if text
        ],
        CAPTIONS,
    )
    write_verdicts(dataset, config_of(RULES).verdict_rules, {FAILURE_KEY})
    shard_rows = [shard_row(c, text) for c, text in zip(kept, captions, strict=True)]
    write_shard(dataset, "shard-00000", shard_rows[:4])
    write_shard(dataset, "shard-00001", shard_rows[4:])
    return dataset


def write_shard(dataset: Dataset, name: str, rows: Sequence[Row]) -> None:
    """With the hashes of the clips as they are."""
    hashed = [{**row, "video_hash": hash_of(row["video"]["bytes"])} for row in rows]
    write_checked(dataset, f"shards/{name}.parquet", hashed, SHARDS)


def hash_of(mp4: bytes) -> str:
    return hashlib.blake2b(mp4, digest_size=16).hexdigest()


def write_checked(dataset: Dataset, name: str, rows: Sequence[Row], schema: pa.Schema) -> None:
    """With page checksums, and few rows in a row group."""
    with dataset.writing(name) as file:
        table = pa.Table.from_pylist(list(rows), schema=schema)
        pq.write_table(table, file, row_group_size=3, write_page_checksum=True, compression="none")


def rewrite(dataset: Dataset, table: str, part: str, change: Callable[[list[Row]], list[Row]]) -> None:
    """Replace a part by what `change` makes of its rows."""
    rows = cast(list[Row], dataset.read_part(table, part).to_pylist())
    write_checked(dataset, f"{table}/{part}.parquet", change(rows), TABLES[table])


def build_large(location: str, clips: int, *, per_part: int = 250) -> Dataset:
    """Many clips with large thumbnails, and verdicts; neither shards nor captions."""
    dataset = Dataset(location)
    write_manifest(dataset)
    generator = np.random.default_rng(0)
    thumbnails = [jpeg(k, 256, 144, noise=True) for k in range(8)]
    for first in range(0, clips, per_part):
        uri = f"videos/long-{first:06d}.mp4"
        rows = []
        for k in range(min(per_part, clips - first)):
            scores = {
                "duration.seconds": 5.0,
                "motion.speed": float(generator.lognormal(-2, 1.2)),
                "aesthetics.mean": float(generator.normal(5, 0.7)),
            }
            rows.append(clip_row(uri, 5.0 * k, 5.0 * k + 5.0, scores, thumbnails[k % 8]))
        source = source_row(
            uri, clips=len(rows), duration_s=5.0 * len(rows), seconds=float(generator.gamma(9))
        )
        dataset.commit_part(f"{first:06d}", [source], rows)
    write_verdicts(dataset, config_of(RULES).verdict_rules, {FAILURE_KEY})
    return dataset
