"""Charts of training logs: every point is in its place, and many points are thinned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from generation.report.curves import MOST_POINTS, chart, charts, powers, read_log, thinned, ticks


def write_log(file: Path, lines: Sequence[Mapping[str, float]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_log_and_its_validation(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", [{"step": s, "loss": 1 / s, "psnr": 20 + s} for s in range(1, 31)])
    write_log(tmp_path / "validation.jsonl", [{"step": s, "loss": 2 / s} for s in (10, 20, 30)])
    (loss, psnr), missing = charts(tmp_path)
    assert missing == []
    assert (loss.what, psnr.what) == ("loss", "PSNR, dB")
    assert [(line.name, len(line.points)) for line in loss.lines] == [("training", 30), ("validation", 3)]
    assert [(line.name, len(line.points)) for line in psnr.lines] == [("training", 30)]
    assert loss.lines[1].last == (30, 2 / 30)
    assert loss.thinned == 1
    assert loss.logarithmic
    assert not psnr.logarithmic
    # A step has the same place in both lines, and larger values are higher.
    training, validation = (line.points for line in loss.lines)
    assert [x for x, _ in validation] == [training[k][0] for k in (9, 19, 29)]
    assert all(mine[1] < training[k][1] for mine, k in zip(validation, (9, 19, 29), strict=True))
    assert [y for _, y in training] == sorted(y for _, y in training)
    assert training[-1][0] == loss.right
    for line in (*loss.lines, *psnr.lines):
        assert all(loss.left <= x <= loss.right and loss.top <= y <= loss.base for x, y in line.points)
        assert len(line.path.split(" ")) == len(line.points)


def test_ticks_stand_where_their_values_are() -> None:
    found = chart("loss", {"training": [(step, 0.1 * step) for step in range(1, 41)]})
    (line,) = found.lines
    assert [t.label for t in found.x_ticks] == ["0", "10", "20", "30", "40"]
    assert found.x_ticks[-1].place == line.points[-1][0]
    at = {t.label: t.place for t in found.y_ticks}
    assert at["1"] == pytest.approx(line.points[9][1], abs=0.02)
    assert at["0.2"] == pytest.approx(line.points[1][1], abs=0.02)  # largest and smallest differ 40 times
    assert found.logarithmic


def test_many_steps_become_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1001)]
    found = chart("loss", {"training": points, "validation": points[:3]})
    assert len(found.lines[0].points) == len(thinned(points)) <= MOST_POINTS
    assert found.thinned == 3
    assert not found.lines[0].marked
    assert found.lines[0].last == points[-1]
    assert thinned(points)[0] == (2, 2 / 3)
    assert thinned(points)[-1] == (1000, 0)  # the last group has one point
    assert len(thinned(points[:MOST_POINTS])) == MOST_POINTS
    assert len(thinned(points[: MOST_POINTS + 1])) == 201


@pytest.mark.parametrize("values", [[0.5], [0.0], [-1.0, 3.0], [2.0, 2.0], [1e-30, 1e30], [0.0, 1e9]])
def test_any_values(values: list[float]) -> None:
    found = chart("loss", {"training": [(float(k), v) for k, v in enumerate(values)]})
    assert all(math.isfinite(z) for point in found.lines[0].points for z in point)
    assert found.lines[0].marked == (len(values) == 1)
    assert 1 <= len(found.y_ticks) <= 10
    assert found.x_ticks


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    assert charts(tmp_path / "none") == ([], ["log.jsonl is missing", "validation.jsonl is missing"])
    write_log(tmp_path / "log.jsonl", [])
    write_log(tmp_path / "validation.jsonl", [{"step": 5, "loss": 0.5}])
    (found,), missing = charts(tmp_path)
    assert missing == ["log.jsonl has no steps"]
    assert [line.name for line in found.lines] == ["validation"]


def test_a_line_that_was_cut_off_and_values_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    assert [line["step"] for line in read_log(file)] == [1, 2]
    (found,), _ = charts(tmp_path)
    assert len(found.lines[0].points) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"step": 1}\nstep 2\n', r"log\.jsonl, line 2 is not JSON"),
        ("[1]\n", r"log\.jsonl, line 1 has no step"),
        ('{"step": "1", "loss": 2}\n', r"line 1 has no step"),
        ("\xff\n", r"line 1 is not JSON"),
    ],
)
def test_broken_logs(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "log.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=words):
        charts(tmp_path)


def test_round_numbers() -> None:
    assert ticks(0, 600) == [0, 200, 400, 600]
    assert ticks(-0.11, 0.12) == [-0.1, -0.05, 0, 0.05, 0.1]
    assert powers(0.03, 4) == [0.05, 0.1, 0.2, 0.5, 1, 2]
    assert powers(0.003, 4000) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert len(powers(1e-30, 1e30)) <= 8
