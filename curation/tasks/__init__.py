"""What travels between the driver and its workers: tasks, and what comes back. None of it is stored.

Each row has a type and, below the type, its Arrow schema, so that the stages of Ray Data see columns. Only
content without a fixed form (`extra`) travels as JSON. Scores travel as a map: null is not scored, and NaN
stays NaN.

    measure.py   parts of sources; clips with their scores
    look.py      pieces of long sources; a value for each frame
    cut.py       clips of a planned shard; what was written
    caption.py   clips that a model is asked about; its answers
    arrow.py     rows to tables and back

May import store.
"""
