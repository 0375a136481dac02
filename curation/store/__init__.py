"""The dataset on disk. Only this room writes the dataset.

In: rows. Out: Parquet parts and whole files, local or on an object store.

    schema.py       the tables and their columns: the contract; rows.py   the same as Python types
    dataset.py      names of files, parts, commits
    whole_file.py   a file appears whole or not at all
    lease.py        one command at a time writes to a folder
    conditional.py  puts that a store refuses where somebody else was quicker
    intact.py       a clip is as it was written, or it is not used
    failures.py     the table of clips that could not be cut or captioned
    upgrade.py      turns older versions into this one     spent.py   how much time each stage of builds took
    table_row.py    files in the rows of Parquet files
    address.py      local paths and remote addresses       transient.py   read errors that may pass

May import filters and captioning, and no other room.
"""
