"""`python -m jobs.select DATASET …`: `reelmill select`, for `ray job submit`."""

from jobs.common import alone
from jobs.dataset import select

if __name__ == "__main__":
    alone(select)
