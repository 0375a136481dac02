"""The measures of clips. In: sampled frames of a clip. Out: named numbers, and a verdict by rules.

`base`: what a scorer is (`Sampling`, `Frames`, `Scores`, `Scorer`).
`find`: a filter by its name, by an entry point, or by the import path of a class of your own.
`duration`, `resolution`: numbers from the clip's header, without pixels.
`motion`, `camera`, `quality`, `borders`, `transition`: numbers from pixels, on a CPU.
`global_motion`, `warped`: what a camera did between two frames, for `camera`.
`timing`: a number from the timestamps.
`text`, `aesthetics`: numbers from models, on a GPU if there is one.
`rules`: bounds on numbers, and the verdict on a clip.

A measure imports `base` and libraries. It imports no Ray, reads no video file and knows no threshold.
"""

from typing import Any

from filters.aesthetics import Aesthetics
from filters.borders import Borders
from filters.camera import Camera
from filters.duration import Duration
from filters.motion import Motion
from filters.quality import Quality
from filters.resolution import Resolution
from filters.text import Text
from filters.timing import Timing
from filters.transition import Transition

# In the order of their columns and rules. A clip that a rule rejects skips the scorers with a model.
SCORERS: dict[str, type[Any]] = {
    "duration": Duration,
    "resolution": Resolution,
    "motion": Motion,
    "camera": Camera,
    "quality": Quality,
    "borders": Borders,
    "transition": Transition,
    "timing": Timing,
    "text": Text,
    "aesthetics": Aesthetics,
}
EMBEDDER = "aesthetics"  # the scorer that also fills the column `embedding`
