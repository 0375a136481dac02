"""The files that the user named, as a sorted list: names, sizes and fingerprints. Nothing is decoded here.

In: files, folders, globs, lists, remote addresses. Out: `source.Source` values.

    listing.py    expands names into files
    lists.py      lists: rows become sources
    tables.py     the rows of CSV, TSV, JSONL, JSON, Parquet and text files
    spans.py      the spans that a list gives of a source
    parquet.py    the rows of Parquet files, also those that hold the files themselves
    identity.py   size, time and fingerprint; which source is a copy of another source
    removed.py    sources that were removed for good
    source.py     one source            media.py   the suffixes of media files

May import captioning and store.
"""
