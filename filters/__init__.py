"""One file per measure: a scorer, from sampled frames of a clip to named numbers.

No Ray, no files, no thresholds.
"""

from typing import Any

from filters.aesthetics import Aesthetics
from filters.borders import Borders
from filters.duration import Duration
from filters.motion import Motion
from filters.quality import Quality
from filters.resolution import Resolution
from filters.text import Text
from filters.transition import Transition

# In the order in which they run: the cheap ones, which can spare the dear ones, come first.
SCORERS: dict[str, type[Any]] = {
    "duration": Duration,
    "resolution": Resolution,
    "motion": Motion,
    "quality": Quality,
    "borders": Borders,
    "transition": Transition,
    "text": Text,
    "aesthetics": Aesthetics,
}
EMBEDDER = "aesthetics"  # whose by-product is the column `embedding`
