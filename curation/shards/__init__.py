"""Shards: self-contained files with the accepted clips, which training reads.

In: accepted clips, encoded videos, captions. Out: shards/*.parquet, or files for other trainers.

    plan.py     plans which clips each shard gets, before the first cut
    write.py    the rows and the file of one shard
    align.py    updates shards after new verdicts, scores and captions, without encoding
    export.py   WebDataset tars, or mp4 and txt files

May import captions, decode, config and store.
"""
