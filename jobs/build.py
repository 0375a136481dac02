"""`python -m jobs.build SOURCES… --out …`: `reelmill build`, for `ray job submit`."""

from jobs.cli import alone, build

if __name__ == "__main__":
    alone(build)
