"""`python -m jobs.caption DATASET …`: runs `reelmill caption`, for `ray job submit`."""

from jobs.common import alone
from jobs.dataset import caption

if __name__ == "__main__":
    alone(caption)
