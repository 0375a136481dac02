"""This room judges clips by their scores, and finds the work of a build. Nothing here writes scores.

In: rows of clips, rules, listed sources. Out: verdicts, and a `Todo`.

    judge.py     a verdict is a pure function of scores, caption checks, failures and rules
    stale.py     finds the scores of a clip that are missing or out of date
    todo.py      compares the named sources with the committed sources
    explain.py   prints the result as lines, for `status --explain` and `--dry-run`

May import shards, captions, sources, config and store.
"""
