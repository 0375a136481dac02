"""The driver prepares a build, hands tasks to the workers, and commits the rows that the workers send back.

In: a dataset, a configuration, rows from workers. Out: committed parts of the dataset. No Ray.

    prepare.py    finishes the work of an earlier command, and finds the work of this build
    parts.py      gathers measured rows and commits them part by part
    scores.py     brings scores and list columns of committed parts up to date
    apply.py      writes verdicts and makes the shards match them
    cuts.py       makes tasks for the cutters, and records the failures
    captions.py   makes tasks for the captioners, and commits their answers
    manifest.py   writes dataset.json

May import verdicts, shards, captions, decode, sources, config and store.
"""
