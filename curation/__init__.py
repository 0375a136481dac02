"""From sources to shards.

    pipeline.py   the flow: measure, select, cut and caption, and build, which calls them in order
    commands/     one module for each command that is not a build
    driver/       what the driver does around the workers: it prepares, hands out tasks and commits
    cluster/      Ray: the workers, their shares of CPUs and GPUs, the session
    report/       the page of a dataset           audit/      accounting, verify, estimate
    verdicts/     judged by rules; what is stale, what is to be done
    shards/       planned, written, aligned with the verdicts, exported
    captions/     whose caption is trained on; what captioners are to be asked
    decode/       foreign bytes: frames, shots, spans, scores, encoding. It runs in the decoding child
    sources/      what the user named, as a list of files
    config/       the one typed configuration
    store/        the dataset on disk: schema, whole files, lease
    sandbox/      the decoding child as its parent sees it
    corpus/       rendered footage whose truth is known; no part of the flow
    tasks/        what travels between the driver and its workers
    progress.py   progress on the terminal

A room may import the rooms that stand below it here, and `filters` and `captioning`. Ray is imported in
`pipeline.py` and `cluster/` alone. `lint-imports` holds this (pyproject.toml).
"""
