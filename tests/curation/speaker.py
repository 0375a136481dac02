"""A small captioner that really looks: it says which of a few colours a clip's pictures have, in words that
depend on their pixels. For tests of what is around captioners."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from captioning.base import Caption, CaptionerMissing, CaptionFailed, CaptionRequest, Pictures

# fmt: off
_WORDS = [
    "river", "mountain", "garden", "window", "bottle", "candle", "ladder", "blanket", "mirror",
    "hammer", "basket", "lantern", "feather", "anchor", "pillow", "kettle", "violin", "saddle",
    "ribbon", "harbor",
]
# fmt: on


@dataclass(frozen=True)
class Speaker:
    """Put in the place of `captioning.local.vlm.Transformers`, with the settings that tests change."""

    model: str = "speaker"
    prompt: str = "detailed"
    frames: int = 3
    side: int = 64
    batch_clips: int = 4
    seed: int = 0
    stutters: int = 0  # in sixteenths of the clips: says a word over and over, unless asked again
    stutters_again: int = 0  # of those, in sixteenths: when asked again, too
    fails: int = 0  # in sixteenths of the clips
    missing: bool = False
    name: ClassVar[str] = "transformers"

    @property
    def key(self) -> str:
        said = [self.model, self.prompt, self.frames, self.side, self.stutters, self.stutters_again]
        return f"speaker-{hashlib.blake2b(repr(said).encode(), digest_size=6).hexdigest()}"

    @property
    def pictures(self) -> Pictures:
        return Pictures(self.frames, None, self.side)

    def check(self) -> None:
        if self.missing:
            raise CaptionerMissing("captions.transformers.model: there is no speaker; set missing=false")

    def again(self) -> Speaker:
        return dataclasses.replace(self, seed=self.seed + 1)

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption | CaptionFailed]:
        answers: list[Caption | CaptionFailed] = []
        for clip in reversed(clips):  # in whatever order: they are joined by clip
            assert clip.pictures
            if share(clip.uri, clip.start_s, "fails") < self.fails:
                answers.append(CaptionFailed(clip.clip_id, "Timeout", "the speaker was silent"))
                continue
            answers.append(Caption(clip.clip_id, self.name, "long", self.say(clip), self.model))
        return answers

    def say(self, clip: CaptionRequest) -> str:
        stutters = share(clip.uri, clip.start_s, "stutters") < self.stutters
        if stutters and self.seed and share(clip.uri, clip.start_s, "again") >= self.stutters_again:
            stutters = False
        if stutters:
            return "A dog " + "runs and " * 60 + "stops."
        pixels = b"".join(p.tobytes() for p in clip.pictures)
        digest = hashlib.blake2b(pixels + f"{self.model} {self.seed}".encode(), digest_size=6).digest()
        words = [_WORDS[b % len(_WORDS)] for b in digest]
        return f"A {words[0]} and a {words[1]} are on the {words[2]} with the {words[3]} in a {words[4]}."


def share(uri: str, start_s: float, what: str) -> int:
    """0 to 15, by clip, wherever its source lies."""
    text = f"{what} {Path(uri).name} {start_s:.3f}"
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 16


@dataclass(frozen=True)
class Rewriter:
    """In the place of `captioning.rewrite.Rewrite`: upper case; fails, or babbles, where it is told to."""

    fails: int = 0  # in sixteenths of the clips
    babbles: int = 0
    missing: bool = False
    batch_clips: int = 4
    prompt: str = "rewrite"
    name: ClassVar[str] = "rewrite"
    pictures: ClassVar[Pictures | None] = None
    key: ClassVar[str] = "rewriter-1"

    def check(self) -> None:
        if self.missing:
            raise CaptionerMissing("captions.rewrite.model: there is no rewriter; set missing=false")

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption | CaptionFailed]:
        answers: list[Caption | CaptionFailed] = []
        for clip in clips:
            assert clip.text is not None
            assert not clip.pictures
            text = clip.text.upper()
            if share(clip.uri, clip.start_s, "fails") < self.fails:
                answers.append(CaptionFailed(clip.clip_id, "EmptyAnswer", "nothing was said"))
                continue
            if share(clip.uri, clip.start_s, "babbles") < self.babbles:
                text = "A DOG " + "RUNS AND " * 60 + "STOPS."
            answers.append(Caption(clip.clip_id, self.name, "rewritten", text, "upper"))
        return answers
