"""Captions of a dataset: the caption to train on for each clip, and the clips that still need a caption.

In: captions of people and of models. Out: the captions table, and tasks for captioning workers.

    people.py   captions in files beside the sources
    wanted.py   the clips in shards that wait for a model
    makers.py   the configured captioner and rewriter
    checks.py   the checks of a caption as columns
    chosen.py   the captions of each clip, and the caption to train on
    table.py    commits captions in parts

May import config and store.
"""
