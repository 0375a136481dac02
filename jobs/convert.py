"""`python -m jobs.convert CHECKPOINT --out FOLDER`: runs `reelmill convert`, for `ray job submit`."""

from jobs.common import alone
from jobs.generate import convert

if __name__ == "__main__":
    alone(convert)
