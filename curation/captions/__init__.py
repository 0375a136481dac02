"""Captions of a dataset: whose caption is trained on, and what captioners are still to be asked.

In: captions of people and of models. Out: the captions table, and tasks for captioning workers.

    people.py   captions in files beside the sources
    wanted.py   the clips in shards that wait for a model
    makers.py   the configured captioner and rewriter
    checks.py   the checks of a caption as columns
    chosen.py   the captions of each clip, and which one is trained on
    table.py    captions are committed in parts

May import config and store.
"""
