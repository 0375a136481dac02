"""What the scores mean under a configuration, and what is to be done. Nothing here writes scores.

In: rows of clips, rules, listed sources. Out: verdicts, and a `Todo`.

    judge.py     a verdict is a pure function of scores, caption checks, failures and rules
    stale.py     which scores of a clip are missing or out of date
    todo.py      what was named, compared with what is committed
    explain.py   the same in lines, for `status --explain` and `--dry-run`

May import shards, captions, sources, config and store.
"""
