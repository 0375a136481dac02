"""From frames to candidate clips: shots, scenes, spans.

In: frames in order. Out: the spans of candidate clips.

    base.py         what a shot detector is, and what it finds: cuts, and ranges of gradual transitions
    choice.py       the detector that a configuration names
    library.py      PySceneDetect's detectors
    similarity.py   our own detector
    transnet.py     TransNetV2
    scenes.py       cuts make scenes
    spans.py        scenes make candidate clips
    listed.py       candidate clips whose spans a list gives

May import config, decode.container, decode.likeness and decode.pixels.
"""

from curation.decode.shots.base import Cut as Cut
from curation.decode.shots.base import OwnDetector as OwnDetector
