"""Lists as people have them. What each row says is written beside it by hand."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.base import CaptionRequest
from captioning.sidecar import Sidecar
from curation.sources.listing import list_sources
from curation.sources.source import Source, SourcesError
from curation.verdicts.todo import source_row


def read(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(`extra` by file name, lines that were said)."""
    said: list[str] = []
    return {Path(s.uri).name: s.extra for s in list_sources([str(path)], None, said.append)}, said


def captions(extra: dict[str, Any], *spans: tuple[float, float]) -> list[str | None]:
    asked = [CaptionRequest(str(i), "/nowhere/a.mp4", a, b, False, extra) for i, (a, b) in enumerate(spans)]
    found = {c.clip_id: c.text for c in Sidecar()(asked)}
    return [found.get(request.clip_id) for request in asked]


ROWS = [{"path": "a.mp4", "caption": "ein Hündchen, braun"}, {"path": "b.mp4", "caption": "東京"}]
TWO = {Path(r["path"]).name: {"caption": r["caption"]} for r in ROWS}


def delimited(delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([list(ROWS[0]), *(list(r.values()) for r in ROWS)])
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", delimited(",")),
        ("l.csv", delimited(";")),
        ("l.csv", delimited("\t")),
        ("l.csv", delimited("|")),
        ("l.tsv", delimited("\t")),
        ("l.csv", delimited(",").replace("path,caption", "Path , caption,").replace("\r\n", ",\r\n")),
        ("l.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("metadata.json", json.dumps(ROWS)),
        ("l.json", json.dumps({"version": 2, "data": ROWS})),
        ("l.json", json.dumps({r["path"]: r["caption"] for r in ROWS})),
        ("l.json", json.dumps({r["path"]: {"caption": r["caption"]} for r in ROWS})),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_forms_of_lists(tmp_path: Path, name: str, text: str, encoding: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" * packed)
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if packed else data)
    found, said = read(path)
    assert {k: {c: v for c, v in extra.items() if c} for k, extra in found.items()} == TWO
    assert said == []


def test_a_text_file_names_a_path_in_each_line(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfv/a.mp4\r\n\r\nv/b, c.mp4\r\n#1.mp4\r\n")
    assert list(read(tmp_path / "l.txt")[0]) == ["#1.mp4", "a.mp4", "b, c.mp4"]
    (tmp_path / "d.json").write_text('["a.mp4", "b.mp4"]')
    assert list(read(tmp_path / "d.json")[0]) == ["a.mp4", "b.mp4"]


def test_the_caption_file_of_a_video_that_a_shell_names_is_no_list(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.txt", "a.json"):
        (tmp_path / name).write_text("a dog runs")
    listed = list_sources([str(p) for p in sorted(tmp_path.iterdir())])
    assert [Path(s.uri).name for s in listed] == ["a.json", "a.mp4", "a.txt"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("l.csv", b"path,caption\na.mp4,x\nb.mp4,a dog, a cat\n", ["row 2", "line 3", "3 cells"]),
        ("l.csv", b'path,caption\na.mp4,"a dog\nb.mp4,x\n', ["line 3", "double quote"]),
        ("l.csv", b"name,Licence\na.mp4,x\n", ["no path column", "name, Licence"]),
        ("l.jsonl", b'{"clip": "a.mp4", "text": "x"}\n', ["no path column", "clip, text"]),
        ("l.csv", "path,caption\na.mp4,été\n".encode("cp1252"), ["not in UTF-8", "iconv"]),
        ("l.json", b'{"caption": 3}', ["no list of objects"]),
        ("l.json", b"[1]", ["entry 1"]),
        ("l.json", b"{", ["cannot be read as a list"]),
        ("l.csv.gz", b"no archive", ["cannot be read as a list"]),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, name: str, data: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourcesError) as error:
        read(tmp_path / name)
    assert [w for w in (str(tmp_path / name), *words) if w not in str(error.value)] == []


def test_videos_within_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"video": [{"bytes": None, "path": "a.mp4"}], "caption": ["x"]}), path)
    assert read(path)[0] == {"a.mp4": {"caption": "x"}}
    pq.write_table(pa.table({"video": [{"bytes": b"x", "path": "a.mp4"}]}), path)
    assert list(read(path)[0]) == ["l.parquet#video=000000000"]  # `test_tables_with_files.py` has the rest


def test_rows_with_times_are_spans_of_their_file(tmp_path: Path) -> None:
    """As in the lists of OpenVid and InternVid: a row for each span."""
    (tmp_path / "l.csv").write_text(
        "video,Start_timestamp,End_timestamp,Caption,licence,score\n"
        "a.mp4,00:00:05.000,00:00:10.000,a cat sleeps,CC0,2\n"
        "a.mp4,00:00:00.000,00:00:05.000,a dog runs,CC0,1\n"
        "b.mp4,00:00:00.000,00:00:05.000,a bird,MIT,3\n"
    )
    found, said = read(tmp_path / "l.csv")
    spans = found["a.mp4"].pop("spans")
    assert found["a.mp4"] == {"licence": "CC0"}
    assert [(s["Caption"], s["score"]) for s in spans] == [("a cat sleeps", "2"), ("a dog runs", "1")]
    assert captions({"spans": spans}, (0, 4), (6, 10), (20, 25)) == ["a dog runs", "a cat sleeps", None]
    assert captions(found["b.mp4"], (0, 4), (6, 10)) == ["a bird", None]
    (line,) = said
    assert "3 rows name 2 files" in line


def test_a_row_with_lists_of_times_and_captions(tmp_path: Path) -> None:
    """As in the lists of Panda-70M, with the path that a download gave."""
    with (tmp_path / "l.csv").open("w", newline="") as file:
        rows = [
            ["videoID", "path", "timestamp", "caption", "matching_score"],
            ["x", "a.mp4", str([["0:00:00.000", "0:00:05.000"], ["0:00:05.000", "0:00:10.000"]])],
        ]
        rows[1] += [str(["a dog", "a cat"]), str([0.4, 0.5])]
        csv.writer(file).writerows(rows)
    found, _ = read(tmp_path / "l.csv")
    assert found["a.mp4"]["videoID"] == "x"
    assert captions(found["a.mp4"], (0, 5), (5, 10), (20, 22)) == ["a dog", "a cat", None]
    assert [s["matching_score"] for s in found["a.mp4"]["spans"]] == [0.4, 0.5]


def test_rows_without_times_are_merged_and_told(tmp_path: Path) -> None:
    rows = [("a.mp4", "a dog"), ("a.mp4", "a cat"), ("b.mp4", "x"), ("b.mp4", "x")]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps({"path": p, "caption": c}) for p, c in rows))
    found, said = read(tmp_path / "l.jsonl")
    assert found == {
        "a.mp4": {"caption": "a dog", "other_rows": [{"caption": "a cat"}]},
        "b.mp4": {"caption": "x"},
    }
    assert len(said) == 1
    assert "4 rows name 2 files" in said[0]


def test_dates_are_no_spans(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,start,end,caption\na.mp4,2024-01-02,2024-02-03,a dog\n")
    (extra,) = read(tmp_path / "l.csv")[0].values()
    assert captions(extra, (0, 5)) == ["a dog"]


def test_a_list_says_more_than_a_folder(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"x")
    (tmp_path / "l.csv").write_text("path,caption\nv/a.mp4,a dog\n")
    (tmp_path / "m.csv").write_text("path,caption\nv/a.mp4,a cat\n")
    said: list[str] = []
    named = [str(tmp_path / n) for n in ("v", "l.csv", "m.csv")]
    (source,) = list_sources(named, None, said.append)
    assert source.extra == {"caption": "a dog"}
    assert len(said) == 1


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_extra_is_strict_json(tmp_path: Path) -> None:
    nan = float("nan")
    table = {"path": ["a.mp4"], "score": [nan], "all": [[1.0, nan, float("inf")]]}
    pq.write_table(pa.table(table), tmp_path / "l.parquet")
    (source,) = list_sources([str(tmp_path / "l.parquet")])
    assert strict(source_row(source)["extra"] or "") == {"score": None, "all": [1.0, None, None]}
    of_before = Source("a.mp4", {"score": nan})  # as in the table of a dataset that was made before
    assert strict(source_row(of_before)["extra"] or "") == {"score": None}
