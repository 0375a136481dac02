"""Build a dataset from Python, look at what was measured, and choose other rules.

Run it as

    python build_a_dataset.py VIDEOS DATASET
"""

import statistics
import sys

from curation import build, rows, select, verify


def main(videos: str, dataset: str) -> None:
    # The configuration of `make demo`, without the filter that looks for text.
    made = build(videos, out=dataset, config="demo", set=["filters.text=null"])
    print(f"{made.sources} sources, {made.clips} clips, {made.accepted} accepted; see {made.report}")
    for column, clips in made.by_reason.items():
        print(f"  {clips} rejected by {column}")

    # Scores are columns. The slower half is left out; nothing is measured again.
    clips = list(rows(dataset, ["uri", "start_s", "end_s", "motion.speed"], table="clips"))
    middle = statistics.median(clip["motion.speed"] for clip in clips)
    made = select(dataset, set=[f"rules.motion.speed.min={middle}"])
    print(f"{made.accepted} of {made.clips} clips move {middle:.3f} frame widths per second or more")

    problems = verify(dataset)
    print("\n".join(problems) or "OK")


if __name__ == "__main__":
    main(*sys.argv[1:])
