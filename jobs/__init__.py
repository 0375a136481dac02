"""Entry points: the `reelmill` command, and modules for `ray job submit … -- python -m jobs.X`.

`cli`: registers all commands; `common`: consoles, errors and exit codes that the commands share.
`dataset`, `corpus`: commands that make, change and check datasets, or render footage.
`generate`, `training`: commands that train and use models.
`labels`: the rules beside a curator's labels, and other cut-offs.
`config`: configurations are described, printed and checked.
`evaluate`, `recipe`: a run is measured; all steps from footage to samples run in sequence.
`build`, `caption`, `select`, `train`, `sample`, `enhance`, `convert`: one command each, for `python -m`.

Commands parse options, call `curation` or `generation`, and report. No other package imports this one.
"""
