"""Shards: a view of the accepted clips that training reads, self-contained.

In: accepted clips, encoded videos, captions. Out: shards/*.parquet, or files for other trainers.

    plan.py     which clips make which shard, written down before the first cut
    write.py    the rows and the file of one shard
    align.py    shards follow verdicts, scores and captions; nothing is encoded
    export.py   WebDataset tars, or mp4 and txt files

May import captions, decode, config and store.
"""
