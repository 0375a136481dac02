"""What the driver does around the workers: it prepares a build, hands out tasks, and commits what comes back.

In: a dataset, a configuration, rows from workers. Out: committed parts of the dataset. No Ray.

    prepare.py    what an earlier command left is finished; what is to be done is found
    parts.py      measured rows are gathered and committed part by part
    scores.py     scores and list columns of committed parts are brought up to date
    apply.py      verdicts are written, and the shards follow them
    cuts.py       tasks for the cutters, and what failed
    captions.py   tasks for the captioners, and their answers
    manifest.py   dataset.json

May import verdicts, shards, captions, decode, sources, config and store.
"""
