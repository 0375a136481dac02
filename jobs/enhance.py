"""`python -m jobs.enhance PREVIEW|VIDEO --run RUN`: runs `reelmill enhance`, for `ray job submit`."""

from jobs.common import alone
from jobs.generate import enhance

if __name__ == "__main__":
    alone(enhance)
