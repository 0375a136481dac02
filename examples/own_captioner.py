"""A captioner of your own: it says how bright a clip is. A model would look at the same pictures.

Run it in this folder, so that workers find the module, too. The clips of the dataset get other captions:

    python own_captioner.py DATASET
"""

import sys
from dataclasses import dataclass

import numpy as np

from captioning.base import CaptionRequest, OwnCaptioner, Pictures


@dataclass(frozen=True)
class Brightness(OwnCaptioner):
    dark: float = 80  # luma, of 255

    pictures = Pictures(count=2, fps=None, side=64)  # at equal distances, at most 64 pixels wide

    def caption(self, clip: CaptionRequest) -> str:
        kind = "dark" if np.mean(clip.pictures) < self.dark else "bright"
        return f"a {kind} scene of {clip.end_s - clip.start_s:.0f} seconds."


if __name__ == "__main__":
    from curation import caption, rows  # workers need the class alone

    (dataset,) = sys.argv[1:]
    print(caption(dataset, captioner="own_captioner:Brightness"))
    for row in rows(dataset, ["clip_id", "caption"]):
        print(row["clip_id"], row["caption"])
