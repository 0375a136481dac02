"""A picture of samples, for a README: frames of each preview, and beside them the same frames of the final
video. `python -m generation.report.picture RUN/evaluation/videos --out samples.png`
"""

from __future__ import annotations

import argparse
import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from generation.media import read_video
from generation.sample.preview_folder import is_preview, load_request, previews_in, some_of

_SHAPE = 1.6  # width over height of the picture, about
_MOST_LINES = 2  # of a prompt's text
_LETTERS = 72  # the picture is about so many letters wide, so that text is readable in a smaller view
_LEAST_TEXT, _MOST_TEXT = 14, 40  # pixels
_PAPER, _INK, _SOFT = (255, 255, 255), (31, 35, 40), (102, 112, 121)


@dataclass(frozen=True)
class _Clip:
    prompt: str
    preview: np.ndarray  # uint8 (n, h, w, 3)
    final: np.ndarray  # uint8 (n, H, W, 3), at the same moments


def write_picture(
    folders: Sequence[Path], out: Path, clips: int = 6, frames: int = 3, scale: int = 3
) -> Path:
    """Write a PNG of at most `clips` previews, evenly chosen, with `frames` frames of each video.

    folders: previews, or folders of previews. Final videos are enlarged `scale` times, and previews are
    enlarged to the same size. The file appears whole or not at all. Returns `out`. Raises `ValueError` that
    names the file when a folder is not a preview, has no final video, or has videos of another size.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"{out}: the picture is a PNG; give a name that ends in .png")
    for name, value in (("clips", clips), ("frames", frames), ("scale", scale)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    shown = [_read(folder, frames) for folder in some_of(_previews(folders), clips)]
    _check_sizes(shown, out)
    pictures = [_compose(shown, columns, scale) for columns in range(1, min(2, len(shown)) + 1)]
    best = min(pictures, key=lambda picture: abs(math.log(picture.width / picture.height / _SHAPE)))
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"_{out.name}")
    try:
        best.save(aside, format="PNG", optimize=True)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return out


def _previews(folders: Sequence[Path]) -> list[Path]:
    """The preview folders. In a folder of previews, only previews with a final video count."""
    found: list[Path] = []
    for folder in folders:
        if folder.is_dir() and not is_preview(folder):
            inside = [f for f in previews_in(folder) if (f / "final.mp4").is_file()]
            if not inside:
                raise ValueError(
                    f"{folder} has no preview with a final.mp4; reelmill sample makes such previews"
                )
            found += inside
        else:
            found.append(folder)
    if not found:
        raise ValueError("name a folder of previews, such as RUN/evaluation/videos")
    return found


def _read(folder: Path, frames: int) -> _Clip:
    prompt = load_request(folder).prompt
    preview, final = (read_video(folder / name).frames for name in ("preview.mp4", "final.mp4"))
    # A final video may have fewer frames, as the codec's stride decides their number.
    moments = some_of(range(min(len(preview), len(final))), frames)
    return _Clip(prompt, preview[moments], final[moments])


def _check_sizes(shown: Sequence[_Clip], out: Path) -> None:
    """Raises `ValueError` when sizes differ, as the headings show one size for all."""
    sizes = {(len(c.final), *c.preview.shape[1:3], *c.final.shape[1:3]) for c in shown}
    if len(sizes) > 1:
        told = ", ".join(f"{n} frames of {w}x{h} and {W}x{H}" for n, h, w, H, W in sorted(sizes))
        raise ValueError(f"{out}: a picture shows videos of one size, not {told}")


# ---------------------------------------------------------------------------------------------------
# The layout
# ---------------------------------------------------------------------------------------------------


def _compose(shown: Sequence[_Clip], columns: int, scale: int) -> Image.Image:
    """The picture: clips row by row in `columns` columns, under headings."""
    count, height, width = shown[0].final.shape[:3]
    height, width = height * scale, width * scale
    gap = max(2, width // 48)
    strip = count * width + (count - 1) * gap  # the frames of one video
    between = max(12, 6 * gap)
    cell = 2 * strip + between
    margin = max(12, between)
    full = columns * cell + (columns - 1) * 2 * margin + 2 * margin
    font = ImageFont.load_default(min(_MOST_TEXT, max(_LEAST_TEXT, full // _LETTERS)))
    line = math.ceil(sum(_metrics(font)) * 1.1)
    lines = [_wrapped(clip.prompt, font, cell) for clip in shown]
    rows = [lines[k : k + columns] for k in range(0, len(shown), columns)]
    texts = [max(map(len, row)) * line + gap for row in rows]
    image = Image.new("RGB", (full, 2 * margin + line + sum(texts) + len(rows) * (height + margin)), _PAPER)
    draw = ImageDraw.Draw(image)
    for column in range(columns):
        left = margin + column * (cell + 2 * margin)
        for name, video, x in (
            ("preview", shown[0].preview, left),
            ("final", shown[0].final, left + strip + between),
        ):
            draw.text((x, margin), f"{name} {video.shape[2]}x{video.shape[1]}", fill=_SOFT, font=font)
    top = margin + line + margin // 2
    for k, (row, text) in enumerate(zip(rows, texts, strict=True)):
        for column, words in enumerate(row):
            left = margin + column * (cell + 2 * margin)
            # The text is directly above the frames, even if a neighbour has more lines.
            y = top + text - gap - len(words) * line
            for number, part in enumerate(words):
                draw.text((left, y + number * line), part, fill=_INK, font=font)
            clip = shown[k * columns + column]
            for video, x in ((clip.preview, left), (clip.final, left + strip + between)):
                for number, frame in enumerate(video):
                    enlarged = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
                    image.paste(enlarged, (x + number * (width + gap), top + text))
        top += text + height + margin
    return image


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _metrics(font: _Font) -> tuple[int, int]:
    return font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (12, 3)


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    """At most two lines of `width` pixels. A longer text ends with an ellipsis."""
    # A prompt may hold half a character (a surrogate), which cannot be drawn.
    words = text.encode("utf-8", "replace").decode("utf-8").split()
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < _MOST_LINES:
            lines.append(word)
        else:
            lines[-1] += f" {word}"  # this line is too long now, and gets an ellipsis
            break
    return [_shortened(line, font, width) for line in lines]


def _shortened(line: str, font: _Font, width: int) -> str:
    """The line, or its beginning with an ellipsis if the line is longer than `width` pixels."""
    if font.getlength(line) <= width:
        return line
    fitting = bisect.bisect(range(len(line)), width, key=lambda n: math.ceil(font.getlength(f"{line[:n]}…")))
    return f"{line[: max(0, fitting - 1)]}…"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m generation.report.picture", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="a preview, or a folder of previews"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the PNG to write")
    parser.add_argument("--clips", type=int, default=6, help="the largest number of previews, evenly chosen")
    parser.add_argument("--frames", type=int, default=3, help="the number of frames of each video")
    parser.add_argument("--scale", type=int, default=3, help="the factor by which final videos are enlarged")
    given = parser.parse_args(arguments)
    try:
        print(write_picture(given.folders, given.out, given.clips, given.frames, given.scale))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
