"""Is a dataset correct, and what would a build cost? This room reads; it writes nothing.

    accounting.py   what became of every source and clip, and whether the sums hold
    verify.py       every row and every byte against the contract
    decoder.py      clips of shards, decoded as training decodes them, in a process of their own
    estimate.py     `--dry-run`: time and size, from a sample of the sources

May import verdicts, shards, captions, decode, sandbox, sources, config and store.
"""
