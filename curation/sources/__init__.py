"""What the user named, as a sorted list of files: names, sizes and fingerprints. No decoder.

In: files, folders, globs, lists, remote addresses. Out: `source.Source` values.

    listing.py    names are expanded
    lists.py      CSV, JSONL and Parquet lists
    identity.py   size, time and fingerprint; which source is a copy of another one
    removed.py    sources that were taken out for good
    source.py     one source            media.py   which suffixes are media

May import store.
"""
