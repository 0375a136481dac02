"""Ray: the workers, their shares of the cluster, and the session.

In: tasks as rows. Out: rows of `rows.STREAM`, `rows.LOOKS` and `caption_workers.ANSWERS`.

    measurer.py         measures sources, or scores their clips again, through a decoding child
    model_scorer.py     runs one model-backed scorer over batches of clips
    cutter.py           encodes the clips of a planned shard and writes the shard
    caption_workers.py  reads clips out of shards, and captions them
    looker.py           looks at one piece of a long source; pieces.py is the flow of such sources
    rows.py             helpers that all workers share; streams.py reads rows and errors from Ray Data
    shares.py           CPUs and GPUs for each worker; session.py opens a Ray session; private.py protects a
                        local one

May import verdicts, shards, captions, decode, sandbox, sources, config and store.
"""
