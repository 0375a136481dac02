"""Pictures with colour profiles become sRGB. The truth: the arithmetic of profiles that are written here."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from curation.decode.video import Video

W, H = 96, 32
COLOURS = [(200, 60, 60), (90, 150, 90), (60, 70, 180), (128, 128, 128)]
# Primaries as XYZ under D50, a row each.
SRGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.7141]])
ADOBE = np.array([[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]])
P3 = np.array([[0.51512, 0.2412, -0.00105], [0.29198, 0.69225, 0.04189], [0.1571, 0.06657, 0.78407]])
WHITE = np.array([0.9642, 1.0, 0.8249])  # D50


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """An ICC profile of version 2."""
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {
        **{
            b"desc": name,
            b"cprt": b"text" + bytes(4) + b"none\0",
            b"wtpt": b"XYZ " + bytes(4) + fixed(*WHITE),
        },
        **tags,
    }
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for tag, bare in tags.items():
        data = bare + bytes(-len(bare) % 4)
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I", at + len(body)) + bytes(4) + b"\2\x10\0\0" + kind + space + pcs
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*WHITE) + bytes(48)
    return head + table + body


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def of_rgb(primaries: np.ndarray, power: float) -> bytes:
    xyz = {
        t: b"XYZ " + bytes(4) + fixed(*p) for t, p in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    }
    return profile(b"RGB ", xyz | {t: gamma(power) for t in (b"rTRC", b"gTRC", b"bTRC")})


def of_grey(power: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": gamma(power)})


def srgb(xyz: np.ndarray) -> np.ndarray:
    """Levels of 255, from XYZ under D50."""
    light = np.clip(xyz @ np.linalg.inv(SRGB), 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def wanted(
    primaries: np.ndarray, power: float, stored: Sequence[tuple[int, ...]] = COLOURS
) -> list[np.ndarray]:
    power = round(power * 256) / 256
    return [srgb((np.array(c) / 255) ** power @ primaries) for c in stored]


def picture() -> Image.Image:
    return Image.fromarray(np.repeat(np.array(COLOURS, np.uint8), W // 4, axis=0)[None].repeat(H, axis=0))


def read(path: Path) -> list[np.ndarray]:
    """The middle of each quarter."""
    with Video(str(path)) as video:
        rgb = next(video.frames()).av.to_ndarray(format="rgb24").astype(float)
    return [rgb[H // 2, W // 8 + k * W // 4] for k in range(4)]


def differs(found: list[np.ndarray], right: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize(("primaries", "power"), [(ADOBE, 2.2), (P3, 2.2), (P3, 1.0), (SRGB, 1.8)])
def test_rgb(primaries: np.ndarray, power: float, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    options = {
        "jpg": {"quality": 100, "subsampling": 0},
        "webp": {"lossless": True},
        "avif": {"quality": 100},
    }
    picture().save(path, icc_profile=of_rgb(primaries, power), **options.get(kind, {}))  # type: ignore[arg-type]
    with Image.open(path) as image:  # near the edge of sRGB, a level of the encoder becomes ten
        stored = [image.convert("RGB").getpixel((W // 8 + k * W // 4, H // 2)) for k in range(4)]
    assert np.abs(np.array(stored) - COLOURS).max() <= 3  # type: ignore[operator]
    assert differs(read(path), wanted(primaries, power, stored)) <= 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"no" * 99]
)
def test_srgb_and_what_is_no_profile_change_nothing(data: bytes, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (H, W, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=data)
    with Video(str(tmp_path / "a.png")) as video:
        assert (next(video.frames()).av.to_ndarray(format="rgb24") == noise).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_grey(bits: int, tmp_path: Path) -> None:
    levels = np.repeat(np.array([20, 90, 160, 250]), W // 4)[None].repeat(H, axis=0)
    values = levels.astype(np.uint8) if bits == 8 else (levels * 257).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=of_grey(1.0))
    right = [srgb(np.full(3, n / 255) * WHITE) for n in (20, 90, 160, 250)]
    assert differs(read(tmp_path / "a.png"), right) <= 2


def test_a_grey_picture_with_a_profile_of_rgb_and_the_reverse(tmp_path: Path) -> None:
    grey = Image.new("L", (W, H), 100)
    grey.save(tmp_path / "a.png", icc_profile=of_rgb(ADOBE, 1.0))
    right = srgb(np.full(3, 100 / 255) @ ADOBE)
    assert differs(read(tmp_path / "a.png"), [right] * 4) <= 2
    picture().save(tmp_path / "b.png", icc_profile=of_grey(1.0))  # for other colours than it has: left out
    assert differs(read(tmp_path / "b.png"), [np.array(c) for c in COLOURS]) == 0


def test_transparent_and_palette_pictures(tmp_path: Path) -> None:
    whole = picture().convert("RGBA")
    whole.paste((0, 255, 0, 0), (72, 0, 96, H))
    whole.save(tmp_path / "a.png", icc_profile=of_rgb(ADOBE, 2.2))
    right = [*wanted(ADOBE, 2.2)[:3], np.full(3, 255)]
    assert differs(read(tmp_path / "a.png"), right) <= 2
    picture().quantize(8).save(tmp_path / "b.png", icc_profile=of_rgb(ADOBE, 2.2))
    assert differs(read(tmp_path / "b.png"), wanted(ADOBE, 2.2)) <= 3


def test_animations_and_turned_pictures(tmp_path: Path) -> None:
    icc = of_rgb(ADOBE, 2.2)
    other = Image.new("RGB", (W, H), (1, 2, 3))
    picture().save(tmp_path / "a.webp", save_all=True, append_images=[other], lossless=True, icc_profile=icc)
    assert differs(read(tmp_path / "a.webp"), wanted(ADOBE, 2.2)) <= 2
    exif = Image.Exif()
    exif[0x112] = 3  # upside down
    picture().save(tmp_path / "b.png", exif=exif, icc_profile=icc)
    assert differs(read(tmp_path / "b.png"), wanted(ADOBE, 2.2)[::-1]) <= 2


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_cmyk(kind: str, tmp_path: Path) -> None:
    """Two levels of each ink: the Lab colour of each of their 16 mixtures is in the profile."""
    labs = {(255, 0, 0, 0): (60, -25, -35), (0, 255, 0, 0): (55, 45, 5), (0, 0, 255, 0): (90, -5, 60)}
    labs |= {(0, 0, 0, 0): (100, 0, 0)}  # and all other mixtures are black
    lut = (
        b"mft2" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">HH", 2, 2)
    )
    lut += struct.pack(">HH", 0, 65535) * 4
    for n in range(16):  # the first ink changes slowest
        inks = tuple(255 * (n >> k & 1) for k in (3, 2, 1, 0))
        lightness, a, b = labs.get(inks, (0, 0, 0))  # type: ignore[call-overload]
        lut += struct.pack(">HHH", round(lightness * 652.8), (a + 128) * 256, (b + 128) * 256)
    lut += struct.pack(">HH", 0, 65535) * 3
    icc = profile(b"CMYK", {b"A2B0": lut}, pcs=b"Lab ", kind=b"prtr")
    inks = np.repeat(np.array(list(labs), np.uint8), W // 4, axis=0)[None].repeat(H, axis=0)
    options = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    Image.fromarray(inks, "CMYK").save(tmp_path / f"a.{kind}", icc_profile=icc, **options)  # type: ignore[arg-type]
    assert differs(read(tmp_path / f"a.{kind}"), [srgb(_xyz(lab)) for lab in labs.values()]) <= 5


def _xyz(lab: tuple[int, int, int]) -> np.ndarray:
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    return WHITE * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
