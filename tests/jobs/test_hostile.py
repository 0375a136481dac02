"""Datasets that a stranger made, or that a disk damaged, through the commands: each ends in words that name
the file, never in a traceback, never without an end, and nothing is written elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from curation.config.load import validated
from jobs.cli import app
from tests.curation import dataset_fixture

ENDS_SECONDS = 60
SHARD = "shards/shard-00000.parquet"
SMALL = ["transformer.layers=1", "transformer.heads=2", "transformer.head_dim=16", "data.fps=4"]
SMALL += ["train.batch_size=2", "train.validate_every=0"]

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that is complete."""
    folder = tmp_path_factory.mktemp("sound") / "d"
    dataset = dataset_fixture.build(str(folder))
    keys = validated(dataset.manifest()["config"]).measure_keys()
    for part in dataset.parts("clips"):
        dataset_fixture.rewrite(dataset, "clips", part, lambda rows: [{**r, "keys": keys} for r in rows])
    assert run(folder, "status").exit_code == 0
    assert run(folder, "verify").exit_code == 0
    return folder


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise AssertionError(f"it did not end within {ENDS_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(ENDS_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(folder: Path, command: str) -> Result:
    out = folder.parent / "out"
    arguments: dict[str, list[Any]] = {
        "status": [],
        "explain": ["--explain"],
        "verify": [],
        "decode": ["--decode"],
        "report": [],
        "tar": ["--to", "webdataset", "--out", out],
        "files": ["--to", "files", "--out", out],
        "select": ["--set", "rules.duration.seconds.min=100"],
        "remove": ["videos/city.mp4"],
        "train": ["stage1", "--data", folder, "--out", out, "--steps", 1],
    }
    names = {"explain": "status", "decode": "verify", "tar": "export", "files": "export"}
    first = [] if command == "train" else [folder]
    sets = [word for value in SMALL for word in ("--set", value)] if command == "train" else []
    words = [names.get(command, command), *first, *arguments[command], *sets]
    return CliRunner().invoke(app, [str(word) for word in words])


# ---------------------------------------------------------------------------------------------------
# What is done to a dataset
# ---------------------------------------------------------------------------------------------------


def content(name: str, data: bytes | str) -> Change:
    return lambda folder: (
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data) and None
    )


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Something else than a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def manifest(**values: Any) -> Change:
    """Sets keys of dataset.json, those that begin with `config_` in its configuration; OUT takes one out."""

    def change(folder: Path) -> None:
        found = json.loads((folder / "dataset.json").read_text())
        for key, value in values.items():
            place, name = (found["config"], key[7:]) if key in _OF_CONFIG else (found, key)
            if value is OUT:
                place.pop(name)
            else:
                place[name] = value
        (folder / "dataset.json").write_text(json.dumps(found))

    return change


OUT = object()
_OF_CONFIG = {"config_rules", "config_captions", "config_filters"}


def table(name: str, change: Callable[[pa.Table], pa.Table]) -> Change:
    def changed(folder: Path) -> None:
        path = folder / name
        pq.write_table(change(pq.read_table(path)), path)

    return changed


def column(name: str, value: Any, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    """All values of a column; those that a function makes of the old ones."""

    def change(rows: pa.Table) -> pa.Table:
        place = rows.column_names.index(name)
        values = value(rows[name].to_pylist()) if callable(value) else [value] * rows.num_rows
        return rows.set_column(place, name, pa.array(values, kind or rows.schema.field(name).type))

    return change


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def videos(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [{"bytes": value, "path": "../../evil.mp4"} for _ in values]


def cut_short(name: str, at: int) -> Change:
    return lambda folder: os.truncate(folder / name, at)


def broken_text(rows: pa.Table) -> pa.Table:
    """Captions that are no UTF-8."""
    values = pa.array([b"\xff\xfe"] * rows.num_rows, pa.binary())
    offsets, data = values.buffers()[1:]
    texts = pa.StringArray.from_buffers(rows.num_rows, offsets, data)
    return rows.set_column(rows.column_names.index("caption"), "caption", texts)


PLAN = '{"cut_hash": "x", "shards": [{"name": "../../evil", "clip_ids": []}]}'
TEXTS = pa.struct([("bytes", pa.string()), ("path", pa.string())])
DEEP = '{"schema_version": 2, "config": ' + '{"a":' * 100_000 + "1" + "}" * 100_001
SOME = {"status": 2, "verify": 2, "report": 2, "files": 2}
MANIFEST = {"status": 2, "explain": 2, "verify": 2, "report": 2, "tar": 2, "select": 2, "remove": 2}
SHARDS = {"status": 2, "verify": 1, "report": 2, "tar": 2, "files": 2, "train": 2}
LEASE = {"host": "\x1b[2J", "pid": 1, "process_start": 1, "command": "\x1b]0;T\x07", "token": "t"}


@dataclass(frozen=True)
class Case:
    name: str
    change: Change
    codes: dict[str, int]  # by command
    says: str = ""  # where the code is 2: what is wrong, and in which file


CASES = [
    # dataset.json
    Case("deep", content("dataset.json", DEEP), MANIFEST, "dataset.json"),
    Case("a hundred levels", manifest(models=json.loads("[" * 100 + "]" * 100)), MANIFEST, "dataset.json"),
    Case("a list", content("dataset.json", "[1]"), MANIFEST, "dataset.json"),
    Case("no text", content("dataset.json", b"\xff\xfe{}"), MANIFEST, "dataset.json"),
    Case("empty", content("dataset.json", b""), MANIFEST, "dataset.json"),
    Case("5,000 digits", content("dataset.json", "9" * 5000), MANIFEST, "dataset.json"),
    Case("a folder", instead("dataset.json", Path.mkdir), MANIFEST, "dataset.json"),
    Case("a pipe", instead("dataset.json", os.mkfifo), MANIFEST, "dataset.json"),
    Case(
        "a link to a device",
        instead("dataset.json", lambda p: p.symlink_to("/dev/zero")),
        MANIFEST,
        "dataset.json",
    ),
    Case("version as text", manifest(schema_version="2"), MANIFEST, "schema version"),
    Case("version true", manifest(schema_version=True), MANIFEST, "schema version"),
    Case("version infinite", manifest(schema_version=float("inf")), MANIFEST, "schema version"),
    Case("no version", manifest(schema_version=OUT), MANIFEST, "schema_version"),
    Case("created a number", manifest(created=5), MANIFEST, "created"),
    Case("no created", manifest(created=OUT), {"report": 0, "status": 0}),
    Case("no config_hash", manifest(config_hash=OUT), {"report": 0, "status": 0}),
    Case("odd models", manifest(models={"a": [{"<script>": 1}]}), {"report": 0}),
    Case("rules a list", manifest(config_rules=[1]), {**MANIFEST, "verify": 1, "tar": 0}, "rules"),
    Case(
        "a bound as text",
        manifest(config_rules={"motion.speed": {"min": "x"}}),
        {**MANIFEST, "verify": 1, "tar": 0},
        "rules.motion.speed",
    ),
    Case(
        "a bound NaN",
        manifest(config_rules={"motion.speed": {"min": float("nan")}}),
        {**MANIFEST, "verify": 1, "tar": 0},
        "rules.motion.speed",
    ),
    Case("captions a list", manifest(config_captions=[]), {**MANIFEST, "verify": 1, "tar": 0}, "captions"),
    Case("captions null", manifest(config_captions=None), {**MANIFEST, "verify": 1, "tar": 0}, "captions"),
    Case("no rules", manifest(config_rules=OUT), {"status": 0, "verify": 1, "report": 0}),
    # the other files of JSON
    Case(
        "removed",
        content("removed.json", '{"a": 1}'),
        {"remove": 2, "status": 0, "select": 2},
        "removed.json",
    ),
    Case("removed numbers", content("removed.json", "[1]"), {"remove": 2, "select": 2}, "removed.json"),
    Case("removed a pipe", instead("removed.json", os.mkfifo), {"remove": 2, "select": 2}, "removed.json"),
    Case("spent", content("spent.json", '[1, "x"]'), {"report": 2, "status": 0}, "spent.json"),
    Case("spent texts", content("spent.json", '{"cut": {"busy_s": "x"}}'), {"report": 2}, "spent.json"),
    Case("spent unknown", content("spent.json", '{"cut": {"x": 1}}'), {"report": 2}, "spent.json"),
    Case("spent NaN", content("spent.json", '{"cut": {"busy_s": NaN}}'), {"report": 2}, "spent.json"),
    Case("lease", content("_lease.json", '{"host":"<x>","pid":99999999999999}'), {"status": 0, "select": 0}),
    Case("lease a pipe", instead("_lease.json", os.mkfifo), {"status": 2}, "_lease.json"),
    # tables
    Case(
        "sources of texts",
        table("sources/a0.parquet", column("bytes", "x", pa.string())),
        {"status": 0, "verify": 1, "report": 0, "remove": 2},
        "sources/a0.parquet",
    ),
    Case(
        "odd status",
        table("sources/a0.parquet", column("status", "<b>odd")),
        {"status": 3, "verify": 1, "report": 0},
    ),
    Case(
        "no uri",
        table("sources/a0.parquet", column("uri", None)),
        {"verify": 1, "report": 2, "remove": 2},
        "sources/a0.parquet",
    ),
    Case(
        "sources endless",
        table("sources/a0.parquet", column("seconds", float("inf"))),
        {"report": 2},
        "sources/a0.parquet",
    ),
    Case(
        "times as text",
        table("clips/a0.parquet", column("start_s", "x", pa.string())),
        {"status": 2, "verify": 1, "report": 2, "remove": 2},
        "clips/a0.parquet",
    ),
    Case(
        "times NaN",
        table("clips/a0.parquet", column("start_s", float("nan"))),
        {"status": 2, "verify": 1, "report": 2},
        "clips/a0.parquet",
    ),
    Case(
        "times endless",
        table("clips/a0.parquet", column("end_s", 1e308)),
        {"status": 2, "verify": 1, "report": 2},
        "clips/a0.parquet",
    ),
    Case(
        "times null",
        table("clips/a0.parquet", column("start_s", None)),
        {"status": 2, "verify": 1, "report": 2},
        "clips/a0.parquet",
    ),
    Case(
        "no clip id",
        table("clips/a0.parquet", column("clip_id", first(None))),
        {"status": 2, "verify": 1, "report": 2, "select": 2},
        "clips/a0.parquet",
    ),
    Case(
        "scores infinite",
        table("clips/a0.parquet", column("motion.speed", float("inf"))),
        {"status": 0, "verify": 1, "report": 0, "select": 0},
    ),
    Case(
        "a hostile thumbnail",
        table("clips/a0.parquet", column("thumbnail", b'"><script>alert(1)</script>')),
        {"report": 0},
    ),
    Case(
        "an odd reason",
        table("verdicts.parquet", column("reason", "\x1b[2J<script>.x")),
        {"status": 3, "verify": 1, "report": 0},
    ),
    Case(
        "an odd verdict",
        table("verdicts.parquet", column("status", "weird")),
        {"status": 3, "verify": 1, "report": 0},
    ),
    Case(
        "verdicts null",
        table("verdicts.parquet", column("status", None)),
        {"status": 2, "verify": 1, "report": 2},
        "verdicts.parquet",
    ),
    Case(
        "verdicts no Parquet",
        content("verdicts.parquet", b"x"),
        {"status": 2, "verify": 1, "report": 2},
        "verdicts.parquet",
    ),
    Case(
        "odd captions",
        table("captions/sidecar-0.parquet", column("text", "\x1b[2J<script>")),
        {"status": 3, "verify": 3, "report": 0},
    ),
    Case(
        "captions without key",
        table("captions/sidecar-0.parquet", lambda t: t.drop(["key"])),
        {"status": 2, "verify": 1, "report": 2},
        "captions/sidecar-0.parquet",
    ),
    Case(
        "failures no Parquet",
        content("failures/f0.parquet", b"PAR1"),
        {"status": 0, "verify": 1, "select": 2},
        "failures/f0.parquet",
    ),
    # shards
    Case(
        "a clip id that leads out",
        table(SHARD, column("clip_id", first("../../evil"))),
        {"verify": 3, "tar": 2, "files": 2, "train": 0},
        SHARD,
    ),
    Case(
        "a clip id of 5,000 digits",
        table(SHARD, column("clip_id", first("a" * 5000))),
        {"verify": 3, "tar": 2, "files": 2},
        SHARD,
    ),
    Case("a clip id null", table(SHARD, column("clip_id", first(None))), {**SHARDS, "tar": 2}, SHARD),
    Case(
        "clip ids that are numbers",
        table(SHARD, column("clip_id", lambda v: list(range(len(v))), pa.int64())),
        SHARDS,
        SHARD,
    ),
    Case(
        "bytes null",
        table(SHARD, column("video", videos(None))),
        {"verify": 1, "tar": 2, "files": 2, "decode": 1},
        SHARD,
    ),
    Case(
        "video null",
        table(SHARD, column("video", None)),
        {"verify": 1, "tar": 2, "files": 2, "train": 0},
        SHARD,
    ),
    Case(
        "bytes are text",
        table(SHARD, column("video", videos("x"), TEXTS)),
        {"verify": 1, "tar": 2, "files": 2, "train": 2},
        SHARD,
    ),
    Case(
        "video is bytes",
        table(SHARD, column("video", lambda v: [x["bytes"] for x in v], pa.binary())),
        {"verify": 1, "tar": 2, "train": 2},
        SHARD,
    ),
    Case("no video", table(SHARD, lambda t: t.drop(["video"])), {"verify": 1, "tar": 2, "train": 2}, SHARD),
    Case(
        "no caption", table(SHARD, lambda t: t.drop(["caption"])), {"verify": 1, "tar": 2, "train": 2}, SHARD
    ),
    Case(
        "captions are numbers",
        table(SHARD, column("caption", 1, pa.int32())),
        {"verify": 1, "tar": 2, "train": 2},
        SHARD,
    ),
    Case(
        "rates are text",
        table(SHARD, column("fps", "x", pa.string())),
        {"verify": 1, "tar": 2, "train": 0},
        SHARD,
    ),
    Case("rates infinite", table(SHARD, column("fps", float("inf"))), {"verify": 1, "train": 0, "tar": 0}),
    Case("text that is none", table(SHARD, broken_text), {"verify": 1, "tar": 2, "train": 2}, SHARD),
    Case("extra no JSON", table(SHARD, column("extra", "{{{")), {"verify": 0, "tar": 0}),
    Case("no rows", table(SHARD, lambda t: t.slice(0, 0)), {"status": 3, "verify": 3, "tar": 0}),
    Case("truncated", cut_short(SHARD, 500), SHARDS, SHARD),
    Case("no Parquet", content(SHARD, b"PAR1" + bytes(100) + b"PAR1"), SHARDS, SHARD),
    Case("a huge footer", content(SHARD, b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"), SHARDS, SHARD),
    Case("a link", instead(SHARD, lambda p: p.symlink_to("/etc/passwd")), SHARDS, SHARD),
    Case("a shard that is a folder", instead(SHARD, Path.mkdir), SHARDS, SHARD),
    Case("a shard that is a pipe", instead(SHARD, os.mkfifo), SHARDS, SHARD),
    Case(
        "an odd name",
        lambda d: os.rename(d / SHARD, d / "shards" / "\x1b[2J..evil.parquet"),
        {"status": 0, "verify": 0, "tar": 0, "select": 0},
    ),
    Case("a plan that leads out", content("shards/_plan.json", PLAN), {"select": 0, "status": 0}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_dataset_is_told_in_words(case: Case, sound: Path, tmp_path: Path) -> None:
    for command, code in case.codes.items():
        place = tmp_path / command
        folder = place / "d"
        shutil.copytree(sound, folder)
        case.change(folder)
        result = run(folder, command)
        assert isinstance(result.exception, SystemExit | None), repr(result.exception)
        assert result.exit_code == code, f"{command}: {result.output}"
        if code == 2:
            (told,) = [line for line in result.stderr.splitlines() if line.startswith("reelmill: ")]
            assert case.says in told
            assert result.stderr.endswith(told + "\n")
        assert not [c for c in result.output if not c.isprintable() and c != "\n"]
        assert {p.name for p in place.iterdir()} <= {"d", "out"}
    assert {p.name for p in tmp_path.iterdir()} == set(case.codes)


@pytest.mark.parametrize("command", ["report", "tar", "train"])
def test_a_place_where_nothing_may_be_written_is_told_in_words(
    command: str, sound: Path, tmp_path: Path
) -> None:
    """As another user, since root may write everywhere."""
    shutil.copytree(sound, tmp_path / "d")
    assert run(tmp_path / "d", command).exit_code == 0  # what it imports may lie where only root reads
    place = Path(tempfile.mkdtemp())
    shutil.copytree(sound, place / "d")
    (place / "out").mkdir()
    locked = place / ("d" if command == "report" else "out")
    for folder in (place, *place.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    (place / "d" / "report.html").unlink(missing_ok=True)
    locked.chmod(0o555)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        result = run(place / "d", command)
    finally:
        os.seteuid(before)
    written = sorted(path.name for path in locked.iterdir())
    shutil.rmtree(place)
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    assert result.exit_code == 2, result.output
    (told,) = [line for line in result.stderr.splitlines() if line.startswith("reelmill: ")]
    assert str(locked) in told
    assert "check who may" in told
    assert not [name for name in written if name.startswith(("_tmp-", "report", "stage1"))]
