"""HTML pages. The page of an evaluation shows bars, figures and videos. The page of a recipe also shows the
curves of its trainings and its cost. Pages have no scripts, and only the videos are separate files.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import jinja2

from generation.disk import write_text
from generation.media import read_video
from generation.report import curves
from generation.sample.preview_folder import load_request, previews_in, some_of

VIDEOS_SHOWN = 48
# The sides of a video in the page, in pixels: the longer side, about; the smallest; the largest.
_SIDE, _LEAST_SIDE, _MOST_SIDE = 256, 128, 480
_MOST_TEXT = 600  # characters of a prompt
_NOTHING = "–"

_PARTS = {
    "judge": "The judge, on real clips",
    "vae": "Autoencoder",
    "stage1": "Stage I",
    "stage2": "Stage II",
    "chain": "Both stages",
}
# The title and the unit of each figure. ↑: more is better, ↓: less is better.
_FIGURES = {
    "accuracy": ("right ↑", "share"),
    "bicubic_psnr_db": ("PSNR of bicubic", "dB"),
    "clips": ("clips", ""),
    "detail": ("detail", "of the true clip's"),
    "detail_over_fewest": ("detail, over that of the fewest evaluations ↑", "ratio"),
    "direction_by_flow": ("direction, by optical flow ↑", "share right"),
    "fit": ("fit for Stage II", ""),
    "flicker_db": ("PSNR of the change from frame to frame ↑", "dB"),
    "frechet": ("Fréchet distance to real clips ↓", "of the judge's features"),
    "gain_db": ("gain over bicubic, of the clips in focus ↑", "dB"),
    "jointly": ("all at once ↑", "share right"),
    "jointly_over_chance": ("all at once ↑", "times chance"),
    "kernel_distance": ("kernel distance to real clips ↓", "of the judge's features"),
    "latent_error": ("latent error ↓", "of the low-quality copies'"),
    "other_gain_db": ("gain of the clips out of focus ↑", "dB"),
    "psnr_db": ("PSNR ↑", "dB"),
    "real_spread": ("spread of real clips of one caption", "levels of 255"),
    "short_of_most_db": ("PSNR short of the most evaluations ↓", "dB"),
    "spread": ("spread of videos of one prompt", "levels of 255"),
    "ssim": ("SSIM ↑", "1: the same"),
    "ssim_gain": ("SSIM gain over bicubic ↑", ""),
    "stage1_bicubic_over_static": ("kernel distance, Stage I bicubic over standing still ↓", "ratio"),
    "two_stage_over_stage1_bicubic": ("kernel distance, two stages over Stage I bicubic ↓", "ratio"),
    "vae_fit": ("autoencoder fit for Stage II", ""),
    "videos": ("videos", ""),
    "wrong_prompts_cost_db": ("PSNR that wrong prompts cost ↑", "dB"),
}
_ROWS = {
    "all": "all videos",
    "low_quality": "low-quality copies",
    "real": "real clips, trained on",
    "seen": "words seen together",
    "stage1_bicubic": "Stage I, bicubic",
    "real_static": "real clips, standing still",
    "static": "the final videos, standing still",
    "two_stage": "two stages",
    "unseen": "words not seen together",
    "untrained": "untrained weights",
    "usual": "as many evaluations as usual",
}
_CONTROLS = {
    "bicubic",
    "shuffled_prompts",
    "stage1_bicubic",
    "standing_still",
    "static",
    "real_static",
    "untrained",
    "wrong_prompts",
}


def write_page(folder: Path, title: str = "Evaluation") -> Path:
    """Write FOLDER/evaluation.html from FOLDER/evaluation.json and FOLDER/videos. Returns the page's path.

    Raises `ValueError` that names the file when the evaluation is missing or broken, or a video is broken.
    """
    result = read_result("", folder, folder)
    if result is None:
        raise ValueError(f"{folder / 'evaluation.json'}: there is no such file; reelmill evaluate writes it")
    shown, total = _samples(folder / "videos", folder)
    return _write(folder / "evaluation.html", title, results=[result], shown=shown, total=total)


def write_recipe_page(
    out: Path,
    title: str,
    evaluations: Sequence[tuple[str, Path]],
    stages: Sequence[tuple[str, Path]],
    costs: Sequence[tuple[str, str, float]],
) -> Path:
    """Write OUT/recipe.html. Returns the page's path.

    evaluations, stages: names and folders. costs: step, command, seconds. The page lists missing files.
    Raises `ValueError` that names a broken file.
    """
    results, missing = [], []
    for name, folder in evaluations:
        result = read_result(name, folder, out)
        if result is None:
            missing.append(f"{name}: evaluation.json is missing")
        else:
            results.append(result)
    samples = next((found for _, f in evaluations if (found := _samples(f / "videos", out))[1]), ([], 0))
    return _write(
        out / "recipe.html",
        title,
        is_recipe=True,
        results=results,
        missing=missing,
        shown=samples[0],
        total=samples[1],
        trainings=[_Training(name, *curves.charts(folder)) for name, folder in stages],
        costs=costs,
        seconds=sum(seconds for _, _, seconds in costs),
    )


def _write(path: Path, title: str, **content: Any) -> Path:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, hours=hours, unbroken=_unbroken)
    template = environment.from_string(files("generation.report").joinpath("page.html").read_text("utf-8"))
    nothing = {"is_recipe": False, "missing": [], "trainings": [], "costs": [], "seconds": 0.0}
    page = template.render(title=title, **{**nothing, **content})
    # A prompt may hold half a character (a surrogate), which UTF-8 cannot encode.
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


@dataclass(frozen=True)
class _Training:
    """The charts of a stage's training, and lines about missing logs."""

    name: str
    charts: list[curves.Chart]
    missing: list[str]


# ---------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """The verdict on a bar."""

    passed: bool
    told: str

    @property
    def rest(self) -> str:
        """The text without the verdict at its beginning."""
        return self.told.removeprefix("passed: " if self.passed else "missed: ")


@dataclass(frozen=True)
class Cell:
    """A figure in a table."""

    path: str  # such as stage1.seen.colour, the name of the figure in bars
    text: str  # rounded
    exact: str  # with all digits


@dataclass(frozen=True)
class Heading:
    """The title of a figure."""

    key: str
    words: str
    unit: str


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    words: str
    is_control: bool
    cells: list[Cell | None]  # None: the row has no such figure


@dataclass(frozen=True)
class Table:
    """Figures with the same keys."""

    title: str
    headings: list[Heading]
    rows: list[Row]


@dataclass(frozen=True)
class Part:
    """The figures of a part of the evaluation."""

    name: str
    title: str
    tables: list[Table]
    others: list[tuple[Heading, Cell]]  # figures that are in no table


@dataclass(frozen=True)
class Result:
    """An evaluation, in the form that the page shows."""

    name: str
    page: str | None  # the address of the evaluation's own page
    facts: list[tuple[str, str]]
    bars: list[Bar]  # missed bars come first
    notes: list[str]
    parts: list[Part]
    settings: str

    @property
    def missed(self) -> int:
        return sum(not bar.passed for bar in self.bars)


def read_result(name: str, folder: Path, base: Path) -> Result | None:
    """Read FOLDER/evaluation.json. Returns None when the file is missing. base: the folder of the page.

    Raises `ValueError` that names the file when it is broken.
    """
    file = folder / "evaluation.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); evaluate again") from error
    kinds = {"figures": dict, "notes": list, "bars": list}
    for key, kind in kinds.items():
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, kind):
            raise ValueError(f"{file}: {key} is {found!r}, not a {kind.__name__}; evaluate again")
    for bar in content["bars"]:
        if not isinstance(bar, dict) or not {"passed", "told"} <= bar.keys():
            raise ValueError(f"{file}: {bar!r} is not a bar; evaluate again")
    bars = [Bar(bool(bar["passed"]), str(bar["told"])) for bar in content["bars"]]
    settings = content.get("settings") or {}
    groups = settings.get("attributes") if isinstance(settings, dict) else None
    own = folder / "evaluation.html"
    return Result(
        name=name,
        page=address(own, base) if base != folder and own.is_file() else None,
        facts=[
            ("run", str(content.get("run", _NOTHING))),
            ("trained on", str(content.get("data", _NOTHING))),
            ("evaluated on", str(content.get("held_out") or "clips that training held out")),
        ],
        bars=sorted(bars, key=lambda bar: bar.passed),
        notes=[str(note) for note in content["notes"]],
        parts=[
            part_of(part, figures, list(groups or ()))
            for part, figures in content["figures"].items()
            if isinstance(figures, dict)
        ],
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
    )


def part_of(name: str, figures: Mapping[str, Any], groups: Sequence[str] = ()) -> Part:
    """The figures of a part, with the same keys in one table. groups: names of a judge's words."""
    single = {key: value for key, value in figures.items() if not isinstance(value, dict)}
    tables: list[Table] = []
    for group in _alike({key: value for key, value in figures.items() if isinstance(value, dict)}):
        rows = {key: (f"{name}.{key}", value) for key, value in group.items()}
        columns = {column for value in group.values() for column in value}
        whole = {key: single.pop(key) for key in list(single) if key in columns}
        if whole:
            rows = {"all": (name, whole), **rows}
        tables += _tables("", rows, groups)
    others = [(heading(k, groups), _cell(f"{name}.{k}", v)) for k, v in single.items()]
    return Part(name, _PARTS.get(name, _words(name)), tables, others)


def _alike(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """Group figures that share a key."""
    groups: list[dict[str, Mapping[str, Any]]] = []
    for name, figures in found.items():
        group = next((g for g in groups if any(figures.keys() & other.keys() for other in g.values())), None)
        if group is None:
            groups.append({name: figures})
        else:
            group[name] = figures
    return groups


def _tables(
    title: str, rows: Mapping[str, tuple[str, Mapping[str, Any]]], groups: Sequence[str]
) -> list[Table]:
    """Tables of figures. rows: name -> (path, figures). Figures within figures get a separate table."""
    values = {
        (row, key): (f"{path}.{key}", value)
        for row, (path, figures) in rows.items()
        for key, value in figures.items()
    }
    flat = {place: told for place, told in values.items() if not isinstance(told[1], dict)}
    if all(row in _FIGURES for row in rows):  # rows are figures, so exchange both
        flat = {(key, row): told for (row, key), told in flat.items()}
    found = []
    if flat:
        columns = list(dict.fromkeys(key for _, key in flat))
        found.append(
            Table(
                title,
                [heading(key, groups) for key in columns],
                [
                    Row(
                        _row_words(row),
                        row in _CONTROLS,
                        [_cell(*flat[row, key]) if (row, key) in flat else None for key in columns],
                    )
                    for row in dict.fromkeys(row for row, _ in flat)
                ],
            )
        )
    for key in dict.fromkeys(key for (_, key), told in values.items() if isinstance(told[1], dict)):
        deeper = {row: told for (row, k), told in values.items() if k == key and isinstance(told[1], dict)}
        found += _tables(f"{title} {_words(key)}".strip(), deeper, groups)
    return found


def heading(key: str, groups: Sequence[str] = ()) -> Heading:
    """The heading of a figure. groups: names of a judge's words."""
    if key in groups:
        return Heading(key, f"{_words(key)} ↑", "share right")
    if key in _FIGURES:
        return Heading(key, *_FIGURES[key])
    return Heading(key, _words(key.removesuffix("_db")), "dB" if key.endswith("_db") else "")


def _row_words(name: str) -> str:
    count = re.fullmatch(r"evaluations_([0-9]+)", name)
    if count:
        return f"{count[1]} evaluation{'s' if count[1] != '1' else ''}"
    return _ROWS.get(name, _words(name))


def _words(key: str) -> str:
    return key.replace("_", " ")


def _unbroken(words: str) -> str:
    """The words, with the arrow on the line of the last word."""
    return words.replace(" ↑", "\u00a0↑").replace(" ↓", "\u00a0↓")


def _cell(path: str, value: Any) -> Cell:
    return Cell(path, number(value), str(value))


def number(value: Any) -> str:
    """A value as text: 12,345 or 27.05 or 0.021; yes or no; a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        size = abs(value)
        text = f"{value:.3g}" if 0 < size < 0.01 else f"{value:.3f}" if size < 10 else f"{value:,.2f}"
    else:
        return str(value)
    return text.replace("-", "−")


def hours(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# ---------------------------------------------------------------------------------------------------
# Videos
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A video in the page. Sizes are in pixels."""

    address: str
    size: str  # width×height in the file
    width: int  # in the page
    height: int
    enlarged: bool


@dataclass(frozen=True)
class Sample:
    """A prompt with its videos."""

    name: str
    prompt: str
    preview: Shown | None  # None: the file is missing
    final: Shown | None


def _samples(videos: Path, base: Path) -> tuple[list[Sample], int]:
    """At most `VIDEOS_SHOWN` samples, and the number of all samples."""
    folders = previews_in(videos)
    return [_sample(folder, base) for folder in some_of(folders, VIDEOS_SHOWN)], len(folders)


def _sample(folder: Path, base: Path) -> Sample:
    prompt = load_request(folder).prompt
    prompt = prompt if len(prompt) <= _MOST_TEXT else prompt[:_MOST_TEXT] + " …"
    found: dict[str, tuple[int, int]] = {}  # height, width
    for name in ("preview.mp4", "final.mp4"):
        if (folder / name).is_file():
            height, width = read_video(folder / name, frames=1).frames.shape[1:3]
            found[name] = height, width
    # Both have the size of the larger video, so that they can be compared.
    height, width = displayed(*max(found.values(), key=math.prod)) if found else (0, 0)
    shown = {
        name: Shown(address(folder / name, base), f"{size[1]}×{size[0]}", width, height, height > size[0])
        for name, size in found.items()
    }
    return Sample(folder.name, prompt, shown.get("preview.mp4"), shown.get("final.mp4"))


def displayed(height: int, width: int) -> tuple[int, int]:
    """Height and width in the page, in pixels. A small video is enlarged by a whole factor.

    Sides are at most 480 pixels, and at least 128 pixels if the first rule allows it.
    """
    longer, shorter = max(height, width), min(height, width)
    if longer > _MOST_SIDE:
        return max(1, height * _MOST_SIDE // longer), max(1, width * _MOST_SIDE // longer)
    times = min(max(_SIDE // longer, math.ceil(_LEAST_SIDE / shorter)), _MOST_SIDE // longer)
    return height * times, width * times


def address(file: Path, base: Path) -> str:
    """The relative address of a file, for a page in the folder `base`."""
    relative = PurePath(os.path.relpath(file, base))
    return "/".join(quote(os.fsencode(part), safe="") for part in relative.parts)
