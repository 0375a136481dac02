"""The plan: the clips of each shard.

The plan is written before the first clip is cut. So a build that was killed and continued makes the same
shards as a build without interruption.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curation.config.schema import Config
from curation.decode.cut import output_size
from curation.store.dataset import Dataset
from curation.store.rows import AcceptedClip, Shape

PLAN = "shards/_plan.json"
_NAME = re.compile(r"shard-(\d{1,9})")
_AT_ONCE = 16  # at least so many shards, unless the shards would be smaller than `_SMALL_SHARD_BYTES`
_SMALL_SHARD_BYTES = 16e6
_BITS_PER_PIXEL = 0.12  # an estimate of x264's output, to fill shards evenly; the true sizes differ


@dataclass(frozen=True)
class Shard:
    """One planned file: the clips of a few sources, in the order of the cut."""

    name: str
    clip_ids: list[str]


def estimated_bytes(clip: Shape, config: Config) -> float:
    """The estimated size of the encoded clip, in bytes."""
    width, height = output_size(clip["width"], clip["height"], config.cut.max_side)
    fps = config.cut.fps or clip["fps"] or 0.0
    frames = max(1.0, (clip["end_s"] - clip["start_s"]) * fps)
    return frames * width * height * _BITS_PER_PIXEL / 8


def plan_shards(clips: Sequence[AcceptedClip], config: Config, first_index: int) -> list[Shard]:
    """Shards that are filled with sources in the order of their hash.

    A source is split only if it does not fit into the rest of a shard. Each shard is the work of one worker.
    So a small number of clips is divided into shards smaller than `shards.target_mb`. The number of workers
    does not change the plan.
    """
    in_order = sorted(clips, key=lambda c: (c["source_id"], c["start_s"]))
    sizes = [estimated_bytes(clip, config) for clip in in_order]
    limit = min(config.shards.target_mb * 1e6, max(_SMALL_SHARD_BYTES, sum(sizes) / _AT_ONCE))
    shards: list[Shard] = []
    ids: list[str] = []
    filled = 0.0
    for clip, size in zip(in_order, sizes, strict=True):
        if ids and filled + size > limit:
            shards.append(Shard(f"shard-{first_index + len(shards):05d}", ids))
            ids, filled = [], 0.0
        ids.append(clip["clip_id"])
        filled += size
    if ids:
        shards.append(Shard(f"shard-{first_index + len(shards):05d}", ids))
    return shards


def _is_plan(value: Any) -> bool:
    """Is this a plan? The names become files, so they must not lead elsewhere."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("cut_hash"), str)
        and isinstance(shards := value.get("shards"), list)
        and all(isinstance(s, dict) and isinstance(s.get("clip_ids"), list) for s in shards)
        and all(isinstance(c, str) for s in shards for c in s["clip_ids"])
        and all(_NAME.fullmatch(str(s.get("name"))) for s in shards)
    )


def settle_plan(dataset: Dataset, wanted: Sequence[AcceptedClip], config: Config) -> list[Shard]:
    """The shards that still must be made, so that each clip of `wanted` is in a shard.

    wanted: the accepted clips that are not in a shard yet.

    Shards of an earlier unfinished plan are kept if all of their clips are still wanted.
    """
    by_id = {c["clip_id"]: c for c in wanted}
    kept: list[Shard] = []
    done = set(dataset.parts("shards"))
    if dataset.exists(PLAN):
        plan = dataset.read_json(PLAN)
        if not _is_plan(plan):
            raise dataset.damaged(PLAN, "it is no plan of shards; it may be removed as well")
        if plan["cut_hash"] == config.cut_hash():
            kept = [
                Shard(s["name"], s["clip_ids"])
                for s in plan["shards"]
                if s["name"] not in done and all(c in by_id for c in s["clip_ids"])
            ]
    for shard in kept:
        for c in shard.clip_ids:
            del by_id[c]
    names = map(_NAME.fullmatch, [*done, *(s.name for s in kept)])
    used = [int(name[1]) for name in names if name]
    planned = kept + plan_shards(list(by_id.values()), config, max(used, default=-1) + 1)
    value = {
        "cut_hash": config.cut_hash(),
        "shards": [{"name": s.name, "clip_ids": s.clip_ids} for s in planned],
    }
    if planned:
        dataset.write(PLAN, json.dumps(value).encode())
    else:
        dataset.remove(PLAN)
    return planned


def sharded_clips(dataset: Dataset) -> dict[str, str]:
    """clip_id -> the shard that holds it."""
    return {
        clip_id: part
        for part, table in dataset.tables("shards", ["clip_id"])
        for clip_id in table["clip_id"].to_pylist()
    }


def captions_in(dataset: Dataset) -> dict[str, int]:
    """clip_id -> a hash of its caption, which is valid only in this process."""
    columns = ["clip_id", "caption"]
    return {row["clip_id"]: hash(row["caption"]) for row in dataset.rows("shards", columns)}
