"""A filter of your own: how colourful a clip is, as Hasler and Süsstrunk (2003) measure it.

Run it in this folder, so that workers find the module, too. A dataset that is there is continued:

    python colourfulness.py VIDEOS DATASET
"""

import sys
from dataclasses import dataclass

import numpy as np

from filters.base import Frames, Scorer


@dataclass(frozen=True)
class Colourfulness(Scorer):
    def measure(self, frames: Frames) -> float:
        red, green, blue = np.stack(frames.images).astype(float).transpose(3, 0, 1, 2)
        rg, yb = red - green, (red + green) / 2 - blue
        return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


if __name__ == "__main__":
    from curation import build, rows  # workers need the class alone

    videos, dataset = sys.argv[1:]
    config = {
        "base": "demo",
        "filters": {"text": None, "colourfulness:Colourfulness": {}},  # its class, by module and name
        "rules": {"colourfulness.value": {"min": 10}},  # grey clips are left out
    }
    made = build(videos, out=dataset, config=config)
    print(made)
    for row in rows(dataset, ["uri", "start_s", "colourfulness.value"]):
        print(row)
