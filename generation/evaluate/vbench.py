"""Videos laid out for VBench's own tool (Huang et al. 2024)."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_LONGEST = 255  # bytes of a file's name, on nearly all file systems


def export_vbench(out: Path, videos: Sequence[Path], prompts: Sequence[str]) -> Path:
    """Copy videos to OUT/{prompt}-{index}.mp4, by which VBench knows what they were made of: index 0 for the
    first of a prompt, 1 for the next of it. Returns `out`.

    A file appears whole or not at all: it is written aside and renamed. Existing ones are replaced. Raises
    `ValueError`, before anything is copied, for a prompt that no file can be named by, for a video that is
    not there, and for others that are: they would be scored, too.
    """
    counts: Counter[str] = Counter()
    names = []
    for video, prompt in zip(videos, prompts, strict=True):
        if not video.is_file():
            raise ValueError(f"{video}: there is no such file")
        names.append(_name(prompt, counts[prompt]))
        counts[prompt] += 1
    others = sorted({p.name for p in out.glob("*.mp4")} - set(names))
    if others:
        raise ValueError(
            f"{out}: it holds {len(others)} other videos ({others[0]} …), which VBench would score, too; "
            "name an empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    aside = out / "_vbench"  # not _NAME: that is the name of another one, whose prompt begins with _
    try:
        for video, name in zip(videos, names, strict=True):
            shutil.copyfile(video, aside)
            aside.replace(out / name)
    finally:
        aside.unlink(missing_ok=True)
    return out


def _name(prompt: str, index: int) -> str:
    name = f"{prompt}-{index}.mp4"
    encoded = name.encode(errors="replace")
    told = prompt if len(prompt) <= 60 else f"{prompt[:60]}…"
    if "/" in prompt or "\0" in prompt or encoded.decode() != name:  # half a character, the last
        raise ValueError(
            f"prompt {told!r}: VBench names files by prompts, and no name holds / or NUL; word it otherwise"
        )
    if len(encoded) > _LONGEST:
        raise ValueError(
            f"prompt {told!r}: VBench names files by prompts, and a name has at most {_LONGEST} bytes, not "
            f"{len(encoded)}; shorten it"
        )
    return name
