"""The dataset on disk, and the only room that writes it.

In: rows. Out: Parquet parts and whole files, local or on an object store.

    schema.py       the tables and their columns: the contract
    dataset.py      names of files, parts, commits
    whole_file.py   a file appears whole or not at all
    lease.py        one command at a time writes to a folder
    conditional.py  puts that a store refuses where somebody else was quicker
    sound.py        a clip is what was written, or it is not used
    failures.py     the table of clips that could not be cut or captioned
    upgrade.py      older versions become this one        spent.py   where the time of builds went
    address.py      local paths and remote addresses      transient.py   read errors that may pass

May import filters and captioning; no other room.
"""
