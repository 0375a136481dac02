"""The tasks that the driver sends to its workers, and the results that the workers send back.

Tasks and results are not stored. Each row has a Python type and an Arrow schema, so that the stages of Ray
Data see columns. Only content without a fixed form (`extra`) is sent as JSON. Scores are sent as a map: null
means not scored, and NaN stays NaN.

    measure.py   parts of sources; clips with their scores
    look.py      pieces of long sources; a value for each frame
    cut.py       clips of a planned shard; the written shard
    caption.py   clips that a model is asked about; the answers of the model
    arrow.py     rows to tables and back

May import store.
"""
