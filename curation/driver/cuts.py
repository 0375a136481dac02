"""The driver's side of cutting: it makes tasks from planned shards, and takes the answers of the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from curation.captions.chosen import Captions, failure_keys
from curation.config.schema import Config
from curation.progress import Progress
from curation.shards.plan import PLAN, Shard, settle_plan, sharded_clips
from curation.store.dataset import Dataset, DatasetError
from curation.store.failures import commit_failures
from curation.store.rows import AcceptedClip, ShardCaptions, scores_of
from curation.store.schema import FIELDS
from curation.store.spent import Phase
from curation.tasks.cut import CutClip, CutTask, WrittenShard
from curation.verdicts.judge import refused_hdr, write_verdicts

_CLIPS_PER_WAVE = 4000  # cutting a wave takes minutes, and starting its workers takes only seconds


class ShardCommits:
    """Plans shards for the accepted clips that are in no shard yet, and takes the results of the workers.

    Workers write the shards; the driver commits the failures.
    """

    def __init__(
        self, dataset: Dataset, accepted: Sequence[AcceptedClip], config: Config, progress: Progress
    ):
        there = sharded_clips(dataset)
        self._clips = {c["clip_id"]: c for c in accepted if c["clip_id"] not in there}
        self._dataset = dataset
        self._config = config
        self._progress = progress
        self._planned = settle_plan(dataset, list(self._clips.values()), config)
        self._failed = 0
        self._phase = Phase()
        if self._planned:
            self._captions = Captions.read(dataset, config)
            columns = ["source_id", "uri", "bytes", "mtime_or_etag", "fingerprint", "extra", FIELDS]
            self._sources = {s["source_id"]: s for s in dataset.rows("sources", columns)}
            progress.start_cut(len(self._clips))

    def waves(self) -> Iterator[list[CutTask]]:
        """Tasks of `cluster.cutter.Cutter`, in groups.

        A task takes more memory per clip than a row of `clips`. So the tasks are not all made at once.
        """
        wave: list[Shard] = []
        for shard in self._planned:
            wave.append(shard)
            if sum(len(s.clip_ids) for s in wave) >= _CLIPS_PER_WAVE:
                yield [self._task(s) for s in wave]
                wave = []
        if wave:
            yield [self._task(s) for s in wave]

    def _task(self, shard: Shard) -> CutTask:
        said = self._captions.in_shards(shard.clip_ids)
        clips = [self._to_cut(i, said[i]) for i in shard.clip_ids]
        return {"name": shard.name, "clips": clips, "token": self._dataset.token}

    def _to_cut(self, clip_id: str, said: ShardCaptions) -> CutClip:
        clip = self._clips[clip_id]
        source = self._sources[clip["source_id"]]
        return {
            "clip_id": clip_id,
            "source_id": clip["source_id"],
            "uri": clip["uri"],
            "start_s": clip["start_s"],
            "end_s": clip["end_s"],
            "frames": clip["frames"],
            "fps": clip["fps"],
            "width": clip["width"],
            "height": clip["height"],
            "scores": scores_of(clip),
            "caption": said["caption"],
            "captions": said["captions"],
            "extra": source["extra"],
            "source": {
                "uri": source["uri"],
                "bytes": source["bytes"],
                "mtime_or_etag": source["mtime_or_etag"],
                "fingerprint": source["fingerprint"],
                "fields": source["fields"],
            },
        }

    def take(self, row: WrittenShard) -> None:
        """Take the result of one shard. Raises `DatasetError` when this node cannot see the shard."""
        failed = row["failures"]
        self._failed += len(failed)
        commit_failures(self._dataset, failed)
        for clip in failed:
            at = self._clips[clip["clip_id"]]
            said = f"{clip['error']}: {clip['message']}"
            self._progress.failed(f"{at['uri']} at {at['start_s']:.1f} s: {said}")
        name = f"shards/{row['name']}.parquet"
        if self._dataset.is_local and row["rows"] and not self._dataset.exists(name):
            raise DatasetError(
                f"{name} was written on another node, and is not in {self._dataset.location} here: "
                "name a place that all nodes see (a disk that they share, or s3://…)"
            )
        self._progress.shard(row["rows"], len(failed), row["bytes"], row["seconds"])
        self._phase.add(row["spent"])

    def end(self) -> int:
        """End the plan, after its last shard. Returns the number of clips that the plan wanted to cut."""
        if not self._planned:
            return 0
        self._progress.end(self._phase.commit(self._dataset))
        self._dataset.remove(PLAN)
        if self._failed:
            config = self._config
            keys, hdr = failure_keys(config), refused_hdr(self._dataset, config)
            write_verdicts(self._dataset, config.verdict_rules, keys, self._captions, hdr=hdr)
        return len(self._clips)
