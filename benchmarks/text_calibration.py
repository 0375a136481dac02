"""Fits and checks `filters.text.shrink`: lines of known area are drawn, detected and compared.

    python -m benchmarks.text_calibration [--footage DIR] [--per-split 90] [--verbose]

The factor is fitted on one set of lines and checked on another set. The second set has other texts, sizes,
angles, colours and backgrounds, and shares only one font. The true area of a line is its advance width times
the sum of the font's ascent and descent. Fonts: the font inside Pillow, and the installed fonts of the DejaVu
family. Backgrounds: plain colours, and frames of the `--footage` files if they exist. Every colour is legible
on its background (nine tenths of the background pixels differ by 80 of 255 or more in lightness), because the
benchmark measures sizes, not recall.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from filters.text import Rect, Text, covered, find_weights, lines, load_detector, maps, words

if TYPE_CHECKING:
    import torch

WIDTH, HEIGHT = 640, 360
COLORS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "yellow": (255, 230, 0),
    "red": (220, 30, 30),
    "cyan": (120, 230, 255),
    "navy": (20, 30, 90),
    "grey": (120, 120, 120),
    "green": (30, 110, 50),
}


@dataclass(frozen=True)
class Split:
    texts: tuple[str, ...]
    fonts: tuple[str, ...]  # "" is the font inside Pillow
    sizes: tuple[int, ...]  # pixels per em, in a frame 640 wide
    angles: tuple[int, ...]  # degrees, counter-clockwise
    colors: tuple[str, ...]
    grounds: tuple[str, ...]


FIT = Split(
    texts=(
        "Breaking news tonight",
        "SUBSCRIBE",
        "We never said it would be easy",
        "Chapter 4",
        "www.example.org",
        "Episode 12: The Long Road Home",
        "00:12:45:07",
        "OPENING HOURS 9 TO 17",
        "Copyright 2024",
        "happy summer days",
        "a room near the sea",
    ),
    fonts=("", "DejaVuSans.ttf", "DejaVuSerif.ttf"),
    sizes=(14, 18, 24, 32, 44, 60, 80),
    angles=(0, 0, 0, 20, -10, 40),
    colors=("white", "black", "yellow", "cyan"),
    grounds=("black", "white", "green", "flower.mp4", "friday.mp4", "cup.mp4"),
)
HELD_OUT = Split(
    texts=(
        "Weather forecast",
        "LIVE FROM PARIS",
        "Do you remember the first time?",
        "Part II",
        "Stock Footage",
        "Directed by Jane Holloway",
        "21 October 2019",
        "Press any key to continue",
        "@channelname",
        "no one was there",
        "The quick brown fox",
        "HELLO WORLD",
    ),
    fonts=(
        "",
        "DejaVuSans-Bold.ttf",
        "DejaVuSansMono.ttf",
        "DejaVuSerif-Italic.ttf",
        "DejaVuSansCondensed.ttf",
    ),
    sizes=(16, 20, 28, 38, 52, 70),
    angles=(0, 0, 0, 15, 30, -20),
    colors=("white", "black", "yellow", "red"),
    grounds=("navy", "grey", "horse.mp4", "hiker.mp4", "chaplin.mp4"),
)


@dataclass(frozen=True)
class Case:
    text: str
    font: str
    size: int
    angle: int
    color: str
    ground: str


def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def draw_line(
    image: Image.Image,
    text: str,
    font: ImageFont.FreeTypeFont,
    center: tuple[float, float],
    *,
    angle: float = 0.0,
    color: str = "white",
) -> np.ndarray:
    """Draw `text` rotated by `angle` degrees counter-clockwise. Returns the line's (4, 2) corners."""
    w, h = font.getlength(text), sum(font.getmetrics())
    side = math.ceil(math.hypot(w, h)) + 8
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).text(((side - w) / 2, (side - h) / 2), text, font=font, fill=255)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC)
    x, y = round(center[0] - side / 2), round(center[1] - side / 2)
    image.paste(Image.new("RGB", mask.size, COLORS[color]), (x, y), mask)
    return Rect(x + side / 2, y + side / 2, w, h, math.radians(-angle)).corners()


def grounds(split: Split, footage: Path | None) -> dict[str, Image.Image]:
    """Name -> a background of 640x360: a plain colour, or the middle frame of a file in `footage`."""
    import av

    found = {}
    for name in split.grounds:
        if name in COLORS:
            found[name] = Image.new("RGB", (WIDTH, HEIGHT), COLORS[name])
        elif footage and (footage / name).is_file():
            with av.open(str(footage / name)) as container:
                stream = container.streams.video[0]
                container.seek(int((stream.duration or 0) // 2), stream=stream)
                image = next(container.decode(stream)).to_image()
            image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.BOX)
            found[name] = image.crop((0, 0, WIDTH, HEIGHT))
    return found


def draw_cases(
    split: Split, n: int, seed: int, footage: Path | None
) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
    """`n` random lines of a split: the case, the (360, 640, 3) image and the line's (4, 2) corners."""
    rng = random.Random(seed)
    images = grounds(split, footage)
    fonts = []
    for name in split.fonts:
        try:
            load_font(name, 20)
            fonts.append(name)
        except OSError:
            print(f"font {name} is not installed and is skipped")
    made = 0
    while made < n:
        # Fonts and sizes come in turn, so that each is used equally often. The rest is random.
        case = Case(
            text=rng.choice(split.texts),
            font=fonts[made % len(fonts)],
            size=split.sizes[made // len(fonts) % len(split.sizes)],
            angle=rng.choice(split.angles),
            color=rng.choice(split.colors),
            ground=rng.choice(list(images)),
        )
        font = load_font(case.font, case.size)
        w, h, t = font.getlength(case.text), sum(font.getmetrics()), math.radians(case.angle)
        half_w = (abs(w * math.cos(t)) + abs(h * math.sin(t))) / 2 + 5
        half_h = (abs(w * math.sin(t)) + abs(h * math.cos(t))) / 2 + 5
        if half_w > WIDTH / 2 or half_h > HEIGHT / 2:
            continue
        x, y = rng.uniform(half_w, WIDTH - half_w), rng.uniform(half_h, HEIGHT - half_h)
        image = images[case.ground].copy()
        box = (int(x - half_w), int(y - half_h), int(x + half_w), int(y + half_h))
        behind = np.asarray(image.convert("L").crop(box)).astype(float)
        if np.percentile(np.abs(behind - np.dot(COLORS[case.color], (0.299, 0.587, 0.114))), 10) < 80:
            continue
        quad = draw_line(image, case.text, font, (x, y), angle=case.angle, color=case.color)
        made += 1
        yield case, np.asarray(image), quad


def layouts() -> Iterator[tuple[str, np.ndarray, list[np.ndarray]]]:
    """Several lines in one frame, in Pillow's font: a name, the image and the lines' corners."""
    three = ("The quick brown fox jumps over", "the lazy dog", "and runs away into the woods")
    two = ("Breaking news today", "Weather forecast")
    for name, texts, size, angle, lead in (
        ("paragraph, 16 px", three, 16, 0, 1.0),
        ("paragraph, 28 px", three, 28, 0, 1.0),
        ("paragraph, 24 px, 15 degrees", three, 24, 15, 1.0),
        ("two lines overlapping by 10 % of their height", two, 40, 0, 0.9),
        ("two lines overlapping by 20 %", two, 40, 0, 0.8),
        ("two lines overlapping by 20 %, 20 degrees", two, 36, 20, 0.8),
        ("two lines overlapping by 30 %", two, 40, 0, 0.7),
    ):
        font, t = load_font("", size), math.radians(angle)
        image = Image.new("RGB", (WIDTH, HEIGHT), COLORS["navy"])
        step = sum(font.getmetrics()) * lead
        quads = []
        for i, text in enumerate(texts):
            d = step * (i - (len(texts) - 1) / 2)
            center = (WIDTH / 2 + d * math.sin(t), HEIGHT / 2 + d * math.cos(t))
            quads.append(draw_line(image, text, font, center, angle=angle))
        yield name, np.asarray(image), quads
    image = Image.new("RGB", (WIDTH, HEIGHT), COLORS["navy"])
    font = load_font("", 40)
    quads = [
        draw_line(image, "A long horizontal line", font, (320, 180)),
        draw_line(image, "turned across it", font, (320, 180), angle=30, color="yellow"),
    ]
    yield "two lines crossing at 30 degrees", np.asarray(image), quads


def detect(net: torch.nn.Module, image: np.ndarray) -> list[Rect]:
    """The detected lines of an image, before shrinking."""
    ((region, link),) = maps(net, [image], "cpu")
    return lines(words(region, link))


def area(found: list[Rect], shrink: float) -> float:
    return covered([r.resized(shrink).corners() for r in found], WIDTH, HEIGHT)


def fit(samples: list[tuple[Case, float, list[Rect]]]) -> float:
    """The factor, to 0.01, with the smallest mean squared logarithm of found over true area.

    Pillow's font has the same weight as all DejaVu fonts together, which share their proportions.
    """
    bundled = np.array([case.font == "" for case, _, _ in samples])
    weight = np.where(bundled, 1 / max(bundled.sum(), 1), 1 / max((~bundled).sum(), 1))

    def loss(shrink: float) -> float:
        ratios = np.array([area(found, shrink) / true for _, true, found in samples])
        return float(weight @ np.log(np.maximum(ratios, 0.01)) ** 2)

    return round(float(min(np.arange(0.7, 1.3, 0.01), key=loss)), 2)


def summary(ratios: np.ndarray) -> str:
    low, middle, high = np.percentile(ratios, (5, 50, 95))
    return (
        f"{len(ratios):4d} lines, {np.mean(np.abs(ratios - 1) <= 0.15):6.1%} within 15 %, mean error "
        f"{np.mean(np.abs(ratios - 1)):5.1%}, found/true 5 %: {low:.2f} 50 %: {middle:.2f} 95 %: {high:.2f}, "
        f"extremes {ratios.min():.2f} {ratios.max():.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--footage", type=Path, help="folder with flower.mp4 and the other files of FIT and HELD_OUT"
    )
    parser.add_argument("--per-split", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every line")
    args = parser.parse_args()

    net = load_detector(find_weights("auto"), "cpu")
    start, count = time.process_time(), 0
    drawn: dict[str, list[tuple[Case, float, list[Rect]]]] = {}
    for name, split in (("fit", FIT), ("held out", HELD_OUT)):
        drawn[name] = []
        seed = 2 * args.seed + (name == "held out")
        for case, image, quad in draw_cases(split, args.per_split, seed, args.footage):
            drawn[name].append((case, covered([quad], WIDTH, HEIGHT), detect(net, image)))
            count += 1
    print(f"{(time.process_time() - start) / count:.2f} CPU-seconds per {WIDTH}x{HEIGHT} frame")

    fitted, used = fit(drawn["fit"]), Text().shrink
    print(f"fitted factor {fitted}; the figures below use the current factor {used}\n")
    for name, samples in drawn.items():
        ratios = np.array([area(found, used) / true for _, true, found in samples])
        print(f"{name:10s} {summary(ratios)}")
        for key in ("font", "angle", "size", "text"):
            for value in sorted({getattr(case, key) for case, _, _ in samples}):
                chosen = ratios[[getattr(case, key) == value for case, _, _ in samples]]
                print(f"    {key:5s} {value!s:31s} {summary(chosen)}")
        if args.verbose:
            for (case, _, _), ratio in zip(samples, ratios, strict=True):
                print(f"    {ratio:.2f} {case}")
    print("\nseveral lines in a frame, found/true:")
    for name, image, quads in layouts():
        print(f"    {name:46s} {area(detect(net, image), used) / covered(quads, WIDTH, HEIGHT):.2f}")


if __name__ == "__main__":
    main()
