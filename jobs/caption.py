"""`python -m jobs.caption DATASET …`: `reelmill caption`, for `ray job submit`."""

from jobs.cli import alone, caption

if __name__ == "__main__":
    alone(caption)
