"""Naming sources: what is listed, in which order, and what is said of that which cannot be read."""

from __future__ import annotations

import builtins
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import string
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.sources import identity
from curation.sources.identity import changed_since, identify
from curation.sources.listing import list_sources
from curation.sources.lists import PATH_COLUMNS
from curation.sources.source import Source, SourcesError
from curation.store import transient
from curation.store.address import AddressRefused
from curation.store.transient import is_transient, retrying

LARGE_BYTES = 40 << 20  # sparse: it takes no room


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def uris(*named: Path | str, limit: int | None = None) -> list[str]:
    return [s.uri for s in list_sources([str(n) for n in named], limit)]


# --- files, folders, globs ------------------------------------------------------------------------


def test_a_folder_is_its_media_sorted_and_recursive(tmp_path: Path) -> None:
    wanted = ["b.mp4", "a/z.MKV", "a/deep/er/c.webm", "still.PNG", "clip.ts"]
    for name in [*wanted, "notes.txt", "a/list.csv", "no_suffix", "mp4", ".mp4.part"]:
        put(tmp_path / name)
    assert uris(tmp_path) == sorted(str(tmp_path / n) for n in wanted)


def test_each_source_is_listed_once_however_often_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = put(tmp_path / "a.mp4"), put(tmp_path / "b.mp4")
    monkeypatch.chdir(tmp_path)
    assert uris("b.mp4", tmp_path, a, "./a.mp4", "*.mp4", f"../{tmp_path.name}/b.mp4") == [str(a), str(b)]


def test_a_file_is_taken_at_its_word_whatever_its_suffix(tmp_path: Path) -> None:
    path = put(tmp_path / "recording.bin")
    assert uris(path) == [str(path)]


def test_globs_match_media_and_files_whose_name_looks_like_one(tmp_path: Path) -> None:
    for name in ["x/1.mp4", "y/2.mp4", "y/2.txt", "y/z/3.mkv", "take [1].mp4"]:
        put(tmp_path / name)
    assert uris(f"{tmp_path}/*/*") == [f"{tmp_path}/x/1.mp4", f"{tmp_path}/y/2.mp4"]
    assert uris(f"{tmp_path}/**/*.mkv") == [f"{tmp_path}/y/z/3.mkv"]
    assert uris(tmp_path / "take [1].mp4") == [f"{tmp_path}/take [1].mp4"]


def test_limit_takes_the_first_in_order(tmp_path: Path) -> None:
    for k in (3, 1, 2, 0):
        put(tmp_path / f"{k}.mp4")
    assert uris(tmp_path / "3.mp4", tmp_path, limit=2) == [f"{tmp_path}/0.mp4", f"{tmp_path}/1.mp4"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.mp4", "no such file"),
        ("missing/", "no such file"),
        ("missing.csv", "no such file"),
        ("empty", "no video or image"),
        ("*.avi", "nothing matches"),
    ],
)
def test_what_is_missing_or_empty_is_named(tmp_path: Path, name: str, says: str) -> None:
    put(tmp_path / "empty" / "notes.txt")
    good = put(tmp_path / "good.mp4")
    named = f"{tmp_path}/{name}"
    with pytest.raises(SourcesError, match=says) as error:
        list_sources([str(good), named])
    assert named.rstrip("/") in str(error.value)


ODD_NAMES = [
    "two words.mp4",
    'it\'s "quoted".mp4',
    "line\nbreak.mp4",
    "🎬 café.mp4",
    "-rf.mp4",
    "~old.mp4",
    "~root.mp4",
    "a,b;c|d.mp4",
    "100%.mp4",
    "#1?.mp4",
    "[x].mp4",
    "back\\slash.mp4",
    "file:x.mp4",
]


def test_of_many_sources_each_is_identified_in_its_place(tmp_path: Path) -> None:
    for k in range(70):
        put(tmp_path / f"{k:02d}.mp4", b"%d" % k)
    listed = [Source(str(tmp_path / f"{k:02d}.mp4")) for k in range(71)]  # the last one is not there
    found = identify(listed, {}, retries=0)
    assert [s.uri for s in found] == [s.uri for s in listed]
    assert [s.bytes for s in found] == [1] * 10 + [2] * 60 + [None]
    assert [s.error is None for s in found] == [True] * 70 + [False]


def test_odd_names_are_found_by_folder_by_name_and_by_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k, name in enumerate(ODD_NAMES):
        put(tmp_path / "odd" / name, b"%d" % k)
    wanted = sorted(str(tmp_path / "odd" / n) for n in ODD_NAMES)
    assert uris(tmp_path / "odd") == wanted
    monkeypatch.chdir(tmp_path / "odd")
    assert uris(*ODD_NAMES) == wanted
    listed = tmp_path / "list.jsonl"
    listed.write_text("\n".join(json.dumps({"path": f"odd/{n}"}) for n in ODD_NAMES))
    assert uris(listed) == wanted
    found = identify(list_sources([str(listed)]), {})
    assert [s.error for s in found] == [None] * len(ODD_NAMES)
    assert len({s.source_id for s in found}) == len(ODD_NAMES)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.text(string.ascii_letters + " '\"é$&\n", min_size=1, max_size=6), max_size=6))
def test_a_csv_list_carries_any_name(tmp_path: Path, stems: set[str]) -> None:
    names = [f"{stem}.mp4" for stem in sorted(stems)] or ["x.mp4"]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path"], *([n] for n in names)])
    assert uris(tmp_path / "list.csv") == sorted(f"{tmp_path}/{n}" for n in names)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    put(tmp_path / "a" / "v.mp4")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.mp4").symlink_to(tmp_path / "self.mp4")
    listed = list_sources([str(tmp_path)])
    assert [s.uri for s in listed] == [f"{tmp_path}/a/v.mp4", f"{tmp_path}/self.mp4"]
    (looped,) = (s for s in identify(listed, {}) if s.error)
    assert looped.uri == f"{tmp_path}/self.mp4"


def test_links_to_folders_are_followed_once_and_a_file_keeps_its_own_path(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "deep" / "far.mp4")
    put(tmp_path / "named" / "b" / "near.mp4")
    for link, target in [
        ("a", "named/b"),  # in order before the folder itself
        ("b/again", "named/b"),
        ("b/top", "named"),
        ("out", "elsewhere"),
        ("out2", "elsewhere"),
    ]:
        (tmp_path / "named" / link).symlink_to(tmp_path / target, target_is_directory=True)
    assert uris(tmp_path / "named") == [f"{tmp_path}/named/b/near.mp4", f"{tmp_path}/named/out/deep/far.mp4"]


def test_a_glob_of_all_depths_ends_where_links_run_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "v.mp4")
    put(tmp_path / ".hidden" / "h.mp4")
    for k in range(3):  # 3 ways at each of 40 depths, for who follows every link
        (tmp_path / "a" / f"up{k}").symlink_to(tmp_path, target_is_directory=True)
    wanted = [f"{tmp_path}/a/b/v.mp4"]
    assert uris(f"{tmp_path}/**/*.mp4") == wanted
    assert uris(f"{tmp_path}/**/b/*.mp4") == wanted
    assert uris(f"{tmp_path}/*/**") == wanted
    assert uris(f"{tmp_path}/**/b/**/v.*") == wanted


def test_a_tree_deeper_than_any_path_is_walked_as_far_as_the_system_goes(tmp_path: Path) -> None:
    put(tmp_path / "v.mp4")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2100):  # paths end at 4096 characters
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        listed = identify(list_sources([str(tmp_path)]), {})
    finally:  # too deep for the cleaning up of temporary folders
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
    assert [(s.uri, s.error) for s in listed if s.error is None] == [(f"{tmp_path}/v.mp4", None)]
    (deep,) = (s for s in listed if s.error)
    assert deep.error == ("OSError", "the folder cannot be read: File name too long")


Shut = Callable[[str], None]


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> Shut:
    """Makes folders of a name unreadable: the tests may run as a user whom no mode keeps out."""
    plain = os.scandir

    def close(name: str) -> None:
        def scandir(folder: Any) -> Any:
            if str(folder).endswith(name):
                raise PermissionError(13, "Permission denied", str(folder))
            return plain(folder)

        monkeypatch.setattr(os, "scandir", scandir)

    return close


def test_a_folder_that_cannot_be_read_is_a_failed_source(tmp_path: Path, shut: Shut) -> None:
    put(tmp_path / "open" / "a.mp4")
    put(tmp_path / "locked" / "b.mp4")
    shut("locked")
    denied = ("PermissionError", "the folder cannot be read: Permission denied")
    for prefix, named in [("", str(tmp_path)), ("", f"{tmp_path}/**/*.mp4"), ("file://", tmp_path.as_uri())]:
        locked, a = identify(list_sources([named]), {})
        assert (locked.uri, locked.error) == (f"{prefix}{tmp_path}/locked", denied)
        assert (a.uri, a.error) == (f"{prefix}{tmp_path}/open/a.mp4", None)


@pytest.mark.parametrize("name", ["locked", "locked.mp4"])
def test_a_folder_that_was_itself_named_must_be_readable(tmp_path: Path, shut: Shut, name: str) -> None:
    put(tmp_path / name / "b.mp4")
    shut(name)
    with pytest.raises(SourcesError, match=rf"{name}.*Permission denied"):
        list_sources([str(tmp_path / name)])
    with pytest.raises(SourcesError, match=rf"{name}.*Permission denied"):
        list_sources([(tmp_path / name).as_uri()])


NO_FILE = ("NotAFile", "a folder, not a file")


def test_a_folder_that_is_named_like_a_video_fails_unless_media_are_in_it(tmp_path: Path) -> None:
    put(tmp_path / "full.mp4" / "deep" / "v.mp4")
    put(tmp_path / "empty.mp4" / "notes.txt")
    put(tmp_path / "empty.mp4 (1)" / "w.mp4")  # sorts between the folder and what would be in it
    (tmp_path / "loop.mp4").symlink_to(tmp_path, target_is_directory=True)
    wanted = {
        f"{tmp_path}/empty.mp4": NO_FILE,
        f"{tmp_path}/empty.mp4 (1)/w.mp4": None,
        f"{tmp_path}/full.mp4/deep/v.mp4": None,
        f"{tmp_path}/loop.mp4": NO_FILE,
    }
    assert {s.uri: s.error for s in identify(list_sources([str(tmp_path)]), {})} == wanted
    listed = [str(tmp_path / "empty.mp4"), str(tmp_path / "full.mp4")]
    assert {s.uri: s.error for s in list_sources(listed)} == {u: wanted[u] for u in sorted(wanted)[::2]}


def test_a_glob_takes_whatever_has_the_name_of_a_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.mp4").symlink_to(tmp_path / "round.mp4")
    (tmp_path / "empty.mp4").mkdir()
    put(tmp_path / "full.mp4" / "v.mkv")
    put(tmp_path / "v.mp4")
    found = identify(list_sources([f"{tmp_path}/*.mp4"]), {})
    assert {os.path.relpath(s.uri, tmp_path): s.error for s in found} == {
        "dangling.mp4": ("FileNotFoundError", "No such file or directory"),
        "empty.mp4": NO_FILE,
        "full.mp4/v.mkv": None,
        "pipe.mp4": ("NotAFile", "a named pipe, not a file"),
        "round.mp4": ("OSError", "Too many levels of symbolic links"),
        "v.mp4": None,
    }


def test_a_name_that_is_not_utf8_is_a_failed_source_that_can_be_stored(tmp_path: Path) -> None:
    names = [b"latin \xe9.mp4", b"\xe9\\xff.mp4", b"\\xe9\xff.mp4", b"\\xe9.mp4", b"\xe9.mp4"]
    for name in names:
        put(tmp_path / os.fsdecode(name))
    shown = {
        f"{tmp_path}/latin \\xe9.mp4",
        f"{tmp_path}/\\xe9\\\\xff.mp4",
        f"{tmp_path}/\\\\xe9\\xff.mp4",
        f"{tmp_path}/\\xe9.mp4",
    }
    listed = list_sources([str(tmp_path)])
    found = identify(listed, {})
    assert len({s.source_id for s in found}) == len(found) == len(names)
    assert {s.uri for s in found} == shown  # one of them is the good file's name as well
    bad = [s for s in found if s.error]
    assert {s.error for s in bad} == {("BadName", "the name is not valid UTF-8; rename the file")}
    assert {s.uri for s in bad} == shown
    assert [s.uri for s in found if s.error is None] == [f"{tmp_path}/\\xe9.mp4"]
    pa.array([s.uri for s in found], pa.string())
    os.unlink(tmp_path / "\\xe9.mp4")
    gone = identify(listed, {})
    assert len({s.source_id for s in gone}) == len(names)  # nothing tells them apart but the kind of name
    assert uris(tmp_path / os.fsdecode(names[0])) == [f"{tmp_path}/latin \\xe9.mp4"]


# --- lists ----------------------------------------------------------------------------------------

Rows = list[dict[str, Any]]


def _csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(r) + "\n\n" for r in rows))


def _parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_list_resolves_paths_against_its_folder_and_keeps_its_columns(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "lists" / f"mine{suffix}"
    listed.parent.mkdir()
    absolute = str(tmp_path / "elsewhere" / "b.mp4")
    rows: Rows = [
        {"title": "one", "path": "videos/a.mp4", "licence": "CC0"},
        {"title": "two", "path": absolute, "licence": "by"},
        {"title": "three", "path": "../c.mp4", "licence": None},
        {"title": "four", "path": "s3://bucket/d.mp4", "licence": "by"},
    ]
    WRITERS[suffix](listed, rows)
    monkeypatch.chdir(tmp_path)
    found = {s.uri: s.extra for s in list_sources([f"lists/mine{suffix}"])}
    assert found == {
        f"{tmp_path}/lists/videos/a.mp4": {"title": "one", "licence": "CC0"},
        absolute: {"title": "two", "licence": "by"},
        f"{tmp_path}/c.mp4": {"title": "three"} | ({"licence": ""} if suffix == ".csv" else {}),
        "s3://bucket/d.mp4": {"title": "four", "licence": "by"},
    }


@pytest.mark.parametrize("column", PATH_COLUMNS)
def test_the_path_column_has_any_accepted_name(tmp_path: Path, column: str) -> None:
    _jsonl(tmp_path / "l.jsonl", [{"n": 1, column: "a.mp4"}])
    (source,) = list_sources([f"{tmp_path}/l.jsonl"])
    assert (source.uri, source.extra) == (f"{tmp_path}/a.mp4", {"n": 1})


def test_the_first_accepted_column_is_the_path_and_others_travel_along(tmp_path: Path) -> None:
    _csv(tmp_path / "l.csv", [{"url": "https://example.org/v", "path": "a.mp4"}])
    (source,) = list_sources([f"{tmp_path}/l.csv"])
    assert (source.uri, source.extra) == (f"{tmp_path}/a.mp4", {"url": "https://example.org/v"})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("l.csv", b"title,licence\none,CC0\n", "no path column.*uri, path, video"),
        ("l.jsonl", b'{"title": "one"}\n', "no path column"),
        ("l.csv", b"path,title\na.mp4,one\n,two\n", "row 2 has no path"),
        ("l.jsonl", b'{"path": "a.mp4"}\n{"title": "x"}\n', "row 2 has no path"),
        ("l.jsonl", b'{"path": "a.mp4"}\n\n{"path": \n', "line 3 is not valid JSON"),
        ("l.jsonl", b'["a.mp4"]\n', "line 1 is not a JSON object"),
        ("l.jsonl", b"\xff\xfe{}\n", "cannot be read as a list"),
        ("l.csv", b"path\n\xff\xfe\n", "cannot be read as a list"),
        ("l.parquet", b"PAR1 no parquet", "cannot be read as a list"),
        ("l.parquet", b"", "cannot be read as a list"),
        ("l.csv", b"", "nothing"),
        ("l.jsonl", b"\n\n", "nothing"),
    ],
)
def test_a_bad_list_is_an_error_that_says_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(SourcesError, match=says) as error:
        list_sources([str(path)])
    assert str(path) in str(error.value)


def test_a_missing_file_in_a_list_is_a_failed_source_not_an_error(tmp_path: Path) -> None:
    put(tmp_path / "a.mp4")
    _jsonl(tmp_path / "l.jsonl", [{"path": "a.mp4"}, {"path": "gone.mp4"}, {"path": "nul\0.mp4"}])
    good, gone, nul = identify(list_sources([f"{tmp_path}/l.jsonl"]), {})
    assert good.error is None
    assert gone.error == ("FileNotFoundError", "No such file or directory")
    assert gone.fingerprint is None
    assert nul.error == ("BadName", "the name holds a NUL byte, which no file's name can")


def test_odd_lines_of_a_list_are_failed_sources(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    long = "x" * 300 + ".mp4"
    lines = [{"path": n} for n in ("folder", "folder/", long, "half \ud800.mp4", f"{long}/{long}")]
    _jsonl(tmp_path / "l.jsonl", lines)
    found = identify(list_sources([f"{tmp_path}/l.jsonl"]), {})
    too_long = ("OSError", "File name too long")
    assert {s.uri: s.error for s in found} == {
        f"{tmp_path}/folder": NO_FILE,
        f"{tmp_path}/{long}": too_long,
        f"{tmp_path}/{long}/{long}": too_long,
        f"{tmp_path}/half \\ud800.mp4": ("BadName", "the name is not valid UTF-8; rename the file"),
    }
    with pytest.raises(SourcesError, match="File name too long"):
        list_sources([str(tmp_path / long)])


def test_half_a_character_in_another_column_is_replaced(tmp_path: Path) -> None:
    row = {"path": "a.mp4", "title": "half \ud800", "tags": ["\udc00", "whole 🎬"], "n": 1}
    _jsonl(tmp_path / "l.jsonl", [row])
    (source,) = list_sources([f"{tmp_path}/l.jsonl"])
    assert source.extra == {"title": "half \ufffd", "tags": ["\ufffd", "whole 🎬"], "n": 1}


# --- identity -------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_a_failed_source_and_no_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    put(tmp_path / "good.mp4")
    (tmp_path / "folder.mp4").mkdir()
    named = [tmp_path / n for n in ("good.mp4", "pipe.mp4", "folder.mp4")]
    addresses = [str(p) for p in named] + [p.as_uri() for p in named]
    found: list[Source] = []
    thread = threading.Thread(
        target=lambda: found.extend(identify([Source(a) for a in addresses], {})), daemon=True
    )
    thread.start()
    thread.join(20)
    waits = thread.is_alive()
    if waits:  # give it the other end, or the threads that read would outlive the tests
        os.close(os.open(tmp_path / "pipe.mp4", os.O_RDWR))
    assert not waits, "it waits for the other end of the pipe"
    good, pipe, folder = found[:3]
    assert good.error is None
    assert pipe.error == ("NotAFile", "a named pipe, not a file")
    assert folder.error == NO_FILE
    assert (pipe.fingerprint, folder.fingerprint) == (None, None)
    remote, *others = found[3:]
    assert remote.error is None
    assert [s.error for s in others] == [("NotAFile", "not a regular file"), NO_FILE]


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=5000), st.data())
def test_one_changed_byte_changes_the_fingerprint(
    tmp_path: Path, content: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= data.draw(st.integers(1, 255))
    a, b, c = (tmp_path / n for n in ("a.mp4", "b.mp4", "c.mp4"))
    a.write_bytes(content)
    b.write_bytes(bytes(changed))
    c.write_bytes(content)
    first, other, same = identify(list_sources([str(tmp_path)]), {})
    assert other.fingerprint != first.fingerprint == same.fingerprint
    assert (first.duplicate_of, other.duplicate_of, same.duplicate_of) == (None, None, first.source_id)
    assert len({first.source_id, other.source_id, same.source_id}) == 3
    assert first.bytes == len(content)


def sparse(path: Path, marks: dict[int, bytes], size: int = LARGE_BYTES) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in marks.items():
            file.seek(offset)
            file.write(data)
    return path


def test_large_files_are_duplicates_only_when_all_of_them_is_the_same(tmp_path: Path) -> None:
    outside = 2 << 20  # between the first sample and the second
    sparse(tmp_path / "a.mp4", {0: b"head", LARGE_BYTES - 9: b"tail"})
    sparse(tmp_path / "b.mp4", {0: b"head", outside: b"x", LARGE_BYTES - 9: b"tail"})
    sparse(tmp_path / "c.mp4", {0: b"head", LARGE_BYTES - 9: b"tail"})
    sparse(tmp_path / "d.mp4", {0: b"head", outside: b"x", LARGE_BYTES - 9: b"tail"})
    sparse(tmp_path / "e.mp4", {0: b"HEAD", LARGE_BYTES - 9: b"tail"})
    a, b, c, d, e = identify(list_sources([str(tmp_path)]), {})
    assert a.fingerprint == b.fingerprint != e.fingerprint  # else this shows nothing
    assert [s.duplicate_of for s in (a, b, c, d, e)] == [None, None, a.source_id, b.source_id, None]
    assert a.source_id != b.source_id


def test_duplicates_point_at_the_first_in_order_whatever_it_is_named(tmp_path: Path) -> None:
    for name in ("m.mp4", "z.mp4", "b.mp4"):
        put(tmp_path / name, b"same")
    put(tmp_path / "a.mp4", b"other")
    other, first, *copies = identify(list_sources([f"{tmp_path}/z.mp4", str(tmp_path)]), {}, threads=3)
    assert first.uri.endswith("b.mp4")
    assert other.duplicate_of is None
    assert first.duplicate_of is None
    assert [s.duplicate_of for s in copies] == [first.source_id] * 2


def test_a_large_copy_that_vanishes_meanwhile_is_not_our_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(tmp_path / "a.mp4", {})
    sparse(tmp_path / "b.mp4", {})
    plain = identity._same_content

    def same_content(a: Source, b: Source) -> bool:
        (tmp_path / "b.mp4").unlink()
        return plain(a, b)

    monkeypatch.setattr(identity, "_same_content", same_content)
    a, b = identify(list_sources([str(tmp_path)]), {})
    assert (a.duplicate_of, b.duplicate_of) == (None, None)


def test_known_files_are_read_again_only_when_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(4):
        put(tmp_path / f"{k}.mp4", b"%d" % k)
    before = identify(list_sources([str(tmp_path)]), {})
    known = {s.uri: s for s in before}
    put(tmp_path / "1.mp4", b"longer")  # another size
    os.utime(tmp_path / "2.mp4", ns=(1, 1))  # another time
    put(tmp_path / "new.mp4")
    opened: list[str] = []
    plain = builtins.open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(os.path.basename(str(file)))
        return plain(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", counting)
    after = identify(list_sources([str(tmp_path)]), known)
    monkeypatch.undo()
    assert sorted(n for n in opened if n.endswith(".mp4")) == ["1.mp4", "2.mp4", "new.mp4"]
    same = [a.source_id == b.source_id for a, b in zip(after, before, strict=False)]
    assert same == [True, False, True, True]  # touched, but the same content


# --- what stays in the dataset without being named ------------------------------------------------


def test_a_copy_of_a_source_that_stays_is_its_duplicate(tmp_path: Path) -> None:
    put(tmp_path / "z" / "old.mp4", b"same")
    (old,) = identify(list_sources([str(tmp_path / "z")]), {})
    put(tmp_path / "new" / "a.mp4", b"same")
    put(tmp_path / "new" / "b.mp4", b"other")
    (tmp_path / "z" / "old.mp4").unlink()  # the fingerprint of a small file is of all of it
    a, b = identify(list_sources([str(tmp_path / "new")]), {}, staying=[old])
    assert (a.duplicate_of, b.duplicate_of) == (old.source_id, None)
    assert old.source_id not in (a.source_id, b.source_id)


def test_a_large_copy_of_a_source_that_stays_is_proven_or_was_before(tmp_path: Path) -> None:
    outside = 2 << 20
    sparse(tmp_path / "old.mp4", {0: b"head"})
    (old,) = identify(list_sources([str(tmp_path / "old.mp4")]), {})
    (tmp_path / "new").mkdir()
    sparse(tmp_path / "new" / "a.mp4", {0: b"head"})
    sparse(tmp_path / "new" / "b.mp4", {0: b"head", outside: b"x"})
    named = list_sources([str(tmp_path / "new")])
    a, b = identify(named, {}, staying=[old])
    assert a.fingerprint == b.fingerprint == old.fingerprint  # else this shows nothing
    assert (a.duplicate_of, b.duplicate_of) == (old.source_id, None)
    (tmp_path / "old.mp4").unlink()
    again = identify(named, {s.uri: s for s in (a, b)}, staying=[old])
    assert [s.duplicate_of for s in again] == [old.source_id, None]
    # It was not recorded as one before, or is another file since: equal samples prove nothing.
    fresh = identify(named, {}, staying=[old])
    assert [s.duplicate_of for s in fresh] == [None, None]
    sparse(tmp_path / "new" / "a.mp4", {0: b"HEAD"})
    changed, _ = identify(named, {s.uri: s for s in (a, b)}, staying=[old])
    assert changed.duplicate_of is None


# --- has it changed? ------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_has_changed_when_its_content_has(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "a.mp4", b"content")
    (a,) = identify([Source(f"{prefix}{path}")], {})

    def changed() -> bool:
        return changed_since(a.uri, a.bytes, a.mtime_or_etag, a.fingerprint)

    with monkeypatch.context() as patch:
        patch.setattr(
            identity, "open_source", lambda *_, **__: pytest.fail("its size and time are as they were")
        )
        assert not changed()
    os.utime(path, ns=(1, 1))
    assert not changed()
    put(path, b"CONTENT")
    assert changed()
    put(path, b"content")
    assert not changed()
    put(path, b"content and more")
    assert changed()
    path.unlink()
    with pytest.raises(OSError):
        changed()
    path.mkdir()
    with pytest.raises(OSError, match="folder"):
        changed()
    with pytest.raises(AddressRefused):
        changed_since("nonsense://x", 1, "", None)


# --- errors that may pass -------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept, instead of sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(transient.time, "sleep", slept.append)
    return slept


PASSING = [
    TimeoutError("slow"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    *(OSError(n, os.strerror(n)) for n in (errno.EIO, errno.ESTALE, errno.EHOSTUNREACH, errno.EMFILE)),
]
LASTING = [
    *(OSError(n, os.strerror(n)) for n in (errno.ENOENT, errno.EACCES, errno.ELOOP, errno.EISDIR)),
    OSError("no number"),
    ValueError("not a file"),
]


class _Failing:
    """Raises `error` for the first `times` calls, then calls `then`."""

    def __init__(self, error: Exception, times: int, then: Callable[..., Any] = lambda: "read"):
        self.error, self.times, self.then = error, times, then
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.then(*args, **kwargs)


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again_each_time_later(error: Exception, waits: list[float]) -> None:
    assert is_transient(error)
    call = _Failing(error, times=2)
    assert retrying(call, 3, 0.5) == "read"
    assert (call.calls, waits) == (3, [0.5, 1.0])
    waits.clear()
    call = _Failing(error, times=9)
    with pytest.raises(type(error)):
        retrying(call, 3, 0.5)
    assert (call.calls, waits) == (4, [0.5, 1.0, 2.0])


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_will_not_pass_is_not_tried_again(error: Exception, waits: list[float]) -> None:
    assert not is_transient(error)
    call = _Failing(error, times=1)
    with pytest.raises(type(error)):
        retrying(call, 3, 0.5)
    assert (call.calls, waits) == (1, [])


@pytest.mark.parametrize("broken", ["_stat", "open_source"])
def test_identifying_outlasts_a_disk_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], broken: str
) -> None:
    path = put(tmp_path / "a.mp4")
    (wanted,) = identify([Source(str(path))], {})
    gone = OSError(errno.ESTALE, "Stale file handle")
    for times, retries, expected in [(2, 3, None), (2, 2, None), (3, 2, ("OSError", "Stale file handle"))]:
        waits.clear()
        with monkeypatch.context() as patch:
            patch.setattr(identity, broken, _Failing(gone, times, getattr(identity, broken)))
            (found,) = identify([Source(str(path))], {}, retries=retries, retry_seconds=0.25)
        assert found.error == expected
        assert waits == [0.25, 0.5]
        assert found == wanted if expected is None else found.fingerprint is None


def test_comparing_and_listing_outlast_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    sparse(tmp_path / "a.mp4", {})
    sparse(tmp_path / "b.mp4", {})
    slow = TimeoutError()
    monkeypatch.setattr(identity, "_same_content", _Failing(slow, 1, identity._same_content))
    monkeypatch.setattr(os, "scandir", _Failing(slow, 1, os.scandir))
    a, b = identify(list_sources([str(tmp_path)]), {})
    assert b.duplicate_of == a.source_id
    assert waits == [1.0, 1.0]


# --- through fsspec -------------------------------------------------------------------------------


def test_remote_addresses_list_and_read_as_local_ones_do(tmp_path: Path) -> None:
    put(tmp_path / "v" / "a.mp4", b"same")
    put(tmp_path / "v" / "deep" / "b.mkv", b"other")
    put(tmp_path / "v" / "notes.txt")
    shutil.copy(tmp_path / "v" / "a.mp4", tmp_path / "v" / "c.mp4")
    folder = (tmp_path / "v").as_uri()
    names = ["a.mp4", "c.mp4", "deep/b.mkv"]
    assert uris(folder) == [f"{folder}/{n}" for n in names]
    assert uris(f"{folder}/*.mp4") == [f"{folder}/{n}" for n in names[:2]]
    assert uris(f"{folder}/a.mp4") == [f"{folder}/a.mp4"]
    a, c, b = identify(list_sources([folder]), {})
    assert (a.error, a.bytes, c.duplicate_of, b.duplicate_of) == (None, 4, a.source_id, None)
    local = identify(list_sources([str(tmp_path / "v")]), {})
    assert [s.fingerprint for s in (a, c, b)] == [s.fingerprint for s in local]


def test_a_remote_list_resolves_against_its_own_folder(tmp_path: Path) -> None:
    _csv(tmp_path / "l.csv", [{"path": "v/a.mp4", "title": "t"}])
    folder = tmp_path.as_uri()
    (source,) = list_sources([f"{folder}/l.csv"])
    assert (source.uri, source.extra) == (f"{folder}/v/a.mp4", {"title": "t"})


@pytest.mark.parametrize("address", ["memory://nowhere/*.mp4", "nonsense://x/y.mp4", "memory://empty/l.csv"])
def test_a_bad_remote_address_is_named(address: str) -> None:
    with pytest.raises(SourcesError) as error:
        list_sources([address])
    assert address in str(error.value)


def test_a_remote_file_of_a_list_that_is_missing_is_a_failed_source(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\nfile:///nowhere/a.mp4\n")
    (source,) = identify(list_sources([str(tmp_path / "list.csv")]), {})
    assert source.error is not None
    assert source.error[0] == "FileNotFoundError"


def test_whatever_a_file_system_raises_is_that_sources_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentials(Exception):
        pass

    def stat(uri: str) -> Any:
        raise NoCredentials("no credentials for the bucket")

    monkeypatch.setattr(identity, "_stat", stat)
    (source,) = identify([Source("s3://bucket/a.mp4")], {})
    assert source.error == ("NoCredentials", "no credentials for the bucket")
    with pytest.raises(OSError, match="no credentials"):
        changed_since("s3://bucket/a.mp4", 1, "", None)


class _Hub(MemoryFileSystem):
    """A store whose files have no time and no etag. `says` are the keys of the content's hash."""

    protocol = "hub"
    says: tuple[str, ...] = ()
    reads = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        data = self.cat_file(path)
        found = {"name": path, "size": len(data), "type": "file"}
        return found | {key: hashlib.sha1(data).hexdigest() for key in self.says}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> _Hub:
    store = _Hub()

    def opened(uri: str, **_: Any) -> io.BytesIO:
        store.reads += 1
        return io.BytesIO(store.cat_file("/a.mp4"))

    monkeypatch.setattr(identity, "is_remote", lambda uri: True)
    monkeypatch.setattr(identity, "filesystem", lambda uri: (store, "/a.mp4"))
    monkeypatch.setattr(identity, "open_source", opened)
    return store


@pytest.mark.parametrize(
    ("says", "reads"), [(("blob_id",), 0), (("xet_hash",), 0), (("blob_id", "xet_hash"), 0), ((), 1)]
)
def test_a_file_of_the_hub_that_changed_at_the_same_size_is_another_file(
    hub: _Hub, says: tuple[str, ...], reads: int
) -> None:
    hub.says = says
    hub.pipe_file("/a.mp4", b"one thing")
    (before,) = identify([Source("hub://a.mp4")], {})
    hub.reads = 0
    (same,) = identify([Source("hub://a.mp4")], {"hub://a.mp4": before})
    assert (same.fingerprint, hub.reads) == (before.fingerprint, reads)  # a store that says nothing is read
    assert not changed_since(before.uri, before.bytes, before.mtime_or_etag, before.fingerprint)
    hub.pipe_file("/a.mp4", b"two thing")
    (after,) = identify([Source("hub://a.mp4")], {"hub://a.mp4": before})
    assert after.fingerprint != before.fingerprint
    assert after.source_id != before.source_id
    assert changed_since(before.uri, before.bytes, before.mtime_or_etag, before.fingerprint)


@pytest.mark.parametrize("size", [10, 9 << 20])
def test_a_copy_that_comes_before_its_measured_original_is_the_copy(tmp_path: Path, size: int) -> None:
    original = put(tmp_path / "m.mp4", os.urandom(size))
    (measured,) = identify(list_sources([str(tmp_path)]), {})
    for name in ("a.mp4", "z.mp4"):
        shutil.copy(original, tmp_path / name)
    found = identify(list_sources([str(tmp_path)]), {measured.uri: measured})
    assert [Path(s.uri).name for s in found] == ["a.mp4", "m.mp4", "z.mp4"]
    assert [s.duplicate_of for s in found] == [measured.source_id, None, measured.source_id]
    # If the original changes, the first copy takes its place.
    original.write_bytes(os.urandom(size))
    found = identify(list_sources([str(tmp_path)]), {s.uri: s for s in found})
    assert [s.duplicate_of for s in found] == [None, None, found[0].source_id]
