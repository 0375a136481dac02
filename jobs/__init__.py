"""Entry points: the `reelmill` command, and modules that `ray job submit … -- python -m jobs.X` runs."""
