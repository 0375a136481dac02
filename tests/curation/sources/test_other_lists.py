"""Lists as other programs and data sets write them. What each row says is written beside it by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from curation.sources.listing import list_sources
from curation.sources.source import SourcesError
from curation.sources.spans import listed_spans
from curation.verdicts.todo import source_row
from tests.curation.sources.test_forms import captions, read

CSV = "path,caption\na.mp4,a dog\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.csv", b"sep=;\r\npath;caption\r\na.mp4;a dog\r\n"),
        ("l.csv", "\ufeffsep=\t\npath\tcaption\na.mp4\ta dog\n".encode()),
        ("l.csv", b"\n \n" + CSV.encode()),
        ("l.csv", b"# made by hand\n" + CSV.encode()),
        ("l.csv", gzip.compress(CSV.encode(), mtime=0)),
        ("l.ndjson", b'{"path": "a.mp4", "caption": "a dog"}\r\n'),
        ("l.jsonl", b'{"path": "a.mp4", "caption": "a dog"}\r'),
        ("l.json", b'\xef\xbb\xbf[{"path": "a.mp4", "caption": "a dog"}]'),
        ("l.json", b'{"path": "a.mp4", "caption": "a dog"}'),
        ("l.json", b'{"path": "a.mp4", "caption": "a dog"}\n{"path": "a.mp4", "caption": "a dog"}\n'),
    ],
)
def test_lists_of_other_programs(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    found, _ = read(tmp_path / name)
    assert found == {"a.mp4": {"caption": "a dog"}}


def test_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,caption,caption,,\na.mp4,first,second,,\n")
    found, _ = read(tmp_path / "l.csv")
    assert found == {"a.mp4": {"caption": "first", "caption.1": "second"}}


SAID = [(["0:00:00", "0:00:02"], "x"), (["0:00:02", "0:00:04.5"], "y")]
KOALA = "path,timestamp,caption\n" + "".join(f'a.mp4,"{pair}",{text}\n' for pair, text in SAID)
MIRA = "path,timestamp,dense_caption,short_caption\n"
MIRA += "".join(f'a.mp4,"{pair}",{text},short {text}\n' for pair, text in SAID)
SHARE_GPT = [{"idx": "1", "timestamp": pair, "content": text} for pair, text in SAID]
TIMES = [[0, 2], [2, 4.5]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", KOALA),  # Koala-36M: the times as a list that is written as a text
        ("l.csv", MIRA),  # MiraData
        ("l.json", json.dumps([{"video_path": "a.mp4", "captions": SHARE_GPT}])),  # ShareGPT4Video
        ("l.json", json.dumps({"a.mp4": {"timestamps": TIMES, "sentences": ["x", "y"]}})),  # ActivityNet
        ("l.jsonl", json.dumps({"path": "a.mp4", "timestamps": TIMES, "captions": ["x", "y"]})),
    ],
)
def test_captions_with_times_of_data_sets(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (source,) = list_sources([str(tmp_path / name)])
    assert captions(source.extra, (0, 2), (2, 4.5), (10, 12)) == ["x", "y", None]
    assert listed_spans(source_row(source)["extra"]) == [(0, 2), (2, 4.5)]


def test_rows_whose_times_can_match_nothing_are_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"path": "a.mp4", "start": 1, "end": 3, "caption": "good"},
        {"path": "b.mp4", "start": 3, "end": 1, "caption": "backward"},
        {"path": "c.mp4", "start": 3, "end": None, "caption": "half"},
        {"path": "d.mp4", "start": 3, "end": float("nan"), "caption": "half"},
        {"path": "e.mp4", "start": "2024-01-01", "end": "2024-02-01", "caption": "dates"},
        {"path": "f.mp4", "start": None, "end": None, "caption": "none"},
        {"path": "g.mp4", "start": 1, "duration": 3, "caption": "no end"},
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, said = read(tmp_path / "l.jsonl")
    assert len(said) == 1
    assert "4 rows have only one of start and end" in said[0]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("l.csv", CSV.encode("utf-16-le"), ["UTF-16 without a byte order mark", "UTF-8"]),
        ("l.csv", b"path,caption\n", ["l.csv: the list has no rows"]),
        ("l.csv", b"", ["the list has no rows"]),
        ("l.xlsx", b"PK\x03\x04", ["CSV"]),
        ("l.yaml", b"- path: a.mp4\n", ["CSV"]),
        ("l.json", b'{"train": [{"path": "a.mp4"}], "val": [{"path": "b.mp4"}]}', ["train, val"]),
        ("l.csv", b"# note\n\npath,caption\na.mp4,x\nb.mp4,y,z\n", ["row 2 (line 5)"]),
        ("l.json", b'[{"path": "a.mp4"},]', ["l.json"]),
    ],
)
def test_what_is_refused_is_one_sentence(name: str, data: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourcesError) as caught:
        list_sources([str(tmp_path / name)])
    for word in words:
        assert word in str(caught.value)
