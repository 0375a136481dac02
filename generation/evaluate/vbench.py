"""Copies of videos for VBench's own tool (Huang et al. 2024)."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_LONGEST = 255  # bytes of a file's name, on nearly all file systems


def export_vbench(out: Path, videos: Sequence[Path], prompts: Sequence[str]) -> Path:
    """Copy videos to OUT/{prompt}-{index}.mp4. VBench reads the prompt from this name. Returns `out`.

    index: 0 for the first video of a prompt, 1 for the second, and so on. A file appears whole or not at all:
    it is written under another name and renamed. Existing files are replaced. Raises `ValueError`, before
    anything is copied, when a prompt cannot be part of a file name, when a video is missing, and when `out`
    holds other videos, which VBench would score as well.
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
            f"{out} holds {len(others)} other videos ({others[0]} …), and VBench would score them, too; "
            "name an empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    aside = out / "_vbench"  # not _NAME, which is the name of a prompt that begins with _
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
    if "/" in prompt or "\0" in prompt or encoded.decode() != name:  # the last: half a character
        raise ValueError(
            f"prompt {told!r}: VBench names files by prompts, and a name cannot hold / or NUL; "
            "change the prompt"
        )
    if len(encoded) > _LONGEST:
        raise ValueError(
            f"prompt {told!r}: VBench names files by prompts, and a name has at most {_LONGEST} bytes, not "
            f"{len(encoded)}; shorten the prompt"
        )
    return name
