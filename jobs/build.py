"""`python -m jobs.build SOURCES… --out …`: runs `reelmill build`, for `ray job submit`."""

from jobs.common import alone
from jobs.dataset import build

if __name__ == "__main__":
    alone(build)
