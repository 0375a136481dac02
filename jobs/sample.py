"""`python -m jobs.sample --prompts FILE --run RUN --out DIR`: `reelmill sample`, for `ray job submit`."""

from jobs.common import alone
from jobs.generate import sample

if __name__ == "__main__":
    alone(sample)
