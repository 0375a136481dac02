"""Checks whether a dataset is correct, and estimates the cost of a build. This room writes nothing.

    accounting.py   counts sources and clips by their result, and checks the sums
    captioned.py    counts the accepted clips that have a caption
    verify.py       checks every row and every byte against the contract
    decoder.py      decodes clips of shards like training does, in a separate process
    estimate.py     estimates time and size from a sample of the sources, for `--dry-run`

May import verdicts, shards, captions, decode, sandbox, sources, config and store.
"""
