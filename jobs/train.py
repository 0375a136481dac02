"""`python -m jobs.train STAGE --data … --out …`: `reelmill train`, for `ray job submit` and `torchrun`."""

from jobs.common import alone
from jobs.generate import train

if __name__ == "__main__":
    alone(train)
