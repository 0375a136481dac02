"""`python -m jobs.select DATASET …`: `reelmill select`, for `ray job submit`."""

from jobs.cli import alone, select

if __name__ == "__main__":
    alone(select)
