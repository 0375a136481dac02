"""The session on Ray: what workers raise, where its files are, which of them stay."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.data
import ray.exceptions

from curation import pipeline
from curation.cluster import session, shares, streams
from curation.config.load import load_config
from curation.config.schema import ConfigError
from curation.progress import Stopped
from curation.sources.listing import list_sources
from curation.tasks.measure import MeasureTask, SourceTask
from curation.verdicts.todo import source_row
from tests import render

ROOT = Path(__file__).parents[2]


class Raising:
    def __init__(self, error: Exception):
        self._error = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        raise self._error


def raised(error: Exception) -> BaseException:
    """What comes out of the pipeline when a worker raises `error`."""
    stream = ray.data.from_items([{"a": 1}]).map_batches(
        Raising,
        fn_constructor_args=(error,),
        batch_format="pyarrow",
        num_cpus=0.1,  # workers live as long as their error is looked at
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    with pytest.raises(BaseException) as caught:
        list(streams.rows(stream))
    return caught.value


@pytest.mark.usefixtures("ray_session")
def test_what_the_driver_has_an_answer_to_comes_as_it_was_raised() -> None:
    full = raised(OSError(errno.ENOSPC, "No space left on device", "/shards/x"))
    assert isinstance(full, OSError)
    assert (full.errno, full.strerror, full.filename) == (errno.ENOSPC, "No space left on device", None)
    denied = raised(PermissionError(errno.EACCES, "Permission denied"))
    assert (type(denied), str(denied)) == (PermissionError, "[Errno 13] Permission denied")
    wrong = raised(ConfigError("crf: 99"))
    assert (type(wrong), str(wrong)) == (ConfigError, "crf: 99")
    other = raised(KeyError("x"))
    assert isinstance(other, ray.exceptions.RayError)
    assert "KeyError" in str(other)


def test_no_room_for_what_is_under_way_is_a_full_disk() -> None:
    error = streams._raised_by_worker(ray.exceptions.OutOfDiskError("95 % are full"))
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("nodes", "overrides", "says"),
    [
        ([(2, 0)], ["run.caption_gpus=1"], ["run.caption_gpus", "takes 1 GPUs", "more than 0", "=0"]),
        ([(2, 1), (2, 1)], ["run.caption_gpus=2"], ["run.caption_gpus", "more than 1 (all together: 2)"]),
        (
            [(2, 0)],
            [
                "run.caption_gpus=1",
                "captions.captioner=sidecar",
                "captions.rewrite={by: transformers, model: m/m}",
            ],
            ["run.caption_gpus"],
        ),
        ([(2, 0)] * 8, ["run.caption_cpus=4"], ["run.caption_cpus", "takes 4 CPUs", "more than 2"]),
        ([(2, 0)], ["run.caption_cpus=4"], None),  # a part of what is there is taken
        ([(2, 0)], [], None),
        ([(2, 1)], ["run.caption_gpus=0.5"], None),
        ([(2, 0)], ["run.caption_gpus=1", "captions.captioner=none"], None),
        (
            [(2, 0.5), (2, 0.5)],
            ["captions.captioner=none", "filters.text={}", "run.model_gpus=1"],
            ["run.model_gpus", "text takes 1 GPUs", "more than 0.5 (all together: 1)", "run.model_gpus=0"],
        ),
        ([(2, 0)], ["captions.captioner=none", "filters.text={}"], None),
    ],
)
def test_workers_that_take_what_no_machine_has_are_refused(
    nodes: list[tuple[float, float]],
    overrides: list[str],
    says: list[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [*there, {"Alive": False, "Resources": {"GPU": 8}}])
    sums = {name: sum(node["Resources"][name] for node in there) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: sums)
    settings = load_config("captions: {captioner: transformers}", overrides)
    began = nullcontext() if says is None else pytest.raises(ConfigError)
    with began as error, session.session(settings):
        pass
    if says is not None:
        assert [word for word in says if word not in str(error.value)] == []


def test_a_cluster_that_lets_nobody_in_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    settings = load_config("run: {ray_address: '10.0.0.1:6379'}")
    with (
        pytest.raises(ConfigError, match=r"at 10\.0\.0\.1:6379 .*RAY_AUTH_MODE=token"),
        session.session(settings),
    ):
        pass


@pytest.mark.parametrize(
    ("cpus", "gpus", "overrides", "model", "measure"),  # model: CPUs and GPUs; measure: CPUs, workers
    [
        (8, 0, [], (1, 0), (1, 6)),
        (8, 1, [], (1, 0.5), (1, 6)),  # two models share the GPU
        (8, 4, [], (1, 1), (1, 6)),  # none can use two
        (8, 1, ["run.model_workers=2"], (1, 0.25), (1, 4)),
        (8, 1, ["run.model_gpus=0.2"], (1, 0.2), (1, 6)),
        (8, 0, ["run.measure_cpus=2"], (1, 0), (2, 3)),
        (2, 0, [], (2 / 3, 0), (2 / 3, 1)),  # fewer CPUs than stages
        (8, 0, ["run.measure_workers=2"], (1, 0), (1, 2)),
    ],
)
def test_models_share_what_there_is(
    cpus: float,
    gpus: float,
    overrides: list[str],
    model: tuple[float, float],
    measure: tuple[float, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus, "GPU": gpus})
    each = shares.cpu_shares(load_config("filters: {text: {}, aesthetics: {}}", overrides))
    assert (each.model_cpus, each.model_gpus) == pytest.approx(model)
    assert (each.measure_cpus, each.measure_workers) == pytest.approx(measure)


@pytest.mark.usefixtures("ray_session")
def test_batches_for_a_model_are_filled_across_sources(tmp_path: Path) -> None:
    """Sources of one clip each: a model is called once for several of them."""
    count, batch = 12, 6
    for k in range(count):
        frames = (render.texture(k, 64, 96) for _ in range(20))
        render.write_video(tmp_path / f"{k}.mp4", frames, fps=10)
    settings = ["spans.min_seconds=1", "spans.trim_seconds=0", f"run.model_batch_clips={batch}"]
    config = load_config("filters: {duration: {}, text: {frames: 1}}", settings)
    parts: list[MeasureTask] = []
    for k, source in enumerate(list_sources([str(tmp_path)])):
        task: SourceTask = {**source_row(source), "rescore": False, "attempts_before": 0, "group": None}
        parts.append({"part": f"p{k}", "sources": [task]})
    rows = list(pipeline.measured(parts, config, str(tmp_path)))
    clips = [clip for row in rows if (clip := row["clip"]) is not None]
    calls = [spent for row in rows if (spent := row["spent"]) is not None and spent["stage"] == "text"]
    assert len(clips) == count
    assert all("text.area" in clip["scores"] for clip in clips)
    assert count / batch <= len(calls) <= count / 2


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder for temporary files: Ray's sockets are in it."""
    folder = Path("/tmp") / f"rm-{uuid.uuid4().hex[:6]}"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def test_folders_of_dead_drivers_are_swept_others_stay(temp: Path) -> None:
    dead = temp / "reelmill-dead"
    (dead / "session" / "logs").mkdir(parents=True)
    (dead / "latest").symlink_to(dead / "session")
    (dead / "driver").write_text("1\n")
    (temp / "reelmill-notes").mkdir()
    (temp / "reelmill-notes" / "mine.txt").write_text("mine")
    (temp / "reelmill-file").write_text("mine")
    with session._session_folder() as first:
        assert not dead.exists()
        assert (Path(first) / "driver").read_text() == f"{os.getpid()}\n"
        with session._session_folder() as second:
            assert Path(first).is_dir()
            assert first != second
        assert Path(first).is_dir()
    assert sorted(p.name for p in temp.iterdir()) == ["reelmill-file", "reelmill-notes"]
    assert (temp / "reelmill-notes" / "mine.txt").read_text() == "mine"


def test_a_long_temporary_folder_is_not_used(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = temp / ("x" * 40)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with session._session_folder() as folder:
        assert os.path.dirname(folder) == "/tmp"
        assert len(folder + session._SOCKET) <= 107
    assert not os.path.exists(folder)


WATCHED = """
import json, os, psutil, sys
from curation.config.load import load_config
from curation.cluster.private import private_ray
config = load_config("run: {object_store_mb: 128}")
private_ray(config)
from curation.cluster.session import session
with session(config):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    heard = []
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        heard += [c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    (folder,) = [e for e in os.scandir(sys.argv[1]) if e.name.startswith("reelmill-")]
    sockets = [str(p) for p, _, names in os.walk(folder) if "raylet" in names]
    print(json.dumps({"mode": folder.stat().st_mode & 0o777, "heard": heard, "sockets": sockets}))
"""


def test_no_other_user_and_no_other_machine_reaches_a_local_ray(temp: Path) -> None:
    """Ray opens its own folder to all users, with the sockets in it, and its ports to the network."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED, str(temp)],
        cwd=ROOT,
        env={**own, "TMPDIR": str(temp)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["mode"] == 0o700
    assert len(found["sockets"]) == 1
    assert len(found["heard"]) >= 5
    assert {address.removeprefix("::ffff:") for address in found["heard"]} == {"127.0.0.1"}
    assert list(temp.iterdir()) == []


@pytest.mark.usefixtures("ray_session")
def test_a_slow_worker_is_not_taken_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a run in which no block moves for half an hour; here, for a second."""
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 1)

    def slow(batch: pa.Table) -> pa.Table:
        time.sleep(5)
        return batch

    with session.session(load_config("")):
        stream = ray.data.from_items([{"a": 1}]).map_batches(slow, batch_format="pyarrow", num_cpus=0.1)
        assert list(streams.rows(stream)) == [{"a": 1}]


class Busy:
    """A machine on which Ray does not start `times` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int):
        self.starts = 0
        self._times = times
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", self._init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(session, "check_shares", lambda _: None)

    def _init(self, **options: Any) -> None:
        self.starts += 1
        (Path(options["_temp_dir"]) / "session_latest" / "logs").mkdir(parents=True, exist_ok=True)
        if self.starts <= self._times:
            raise Exception("The current node timed out during startup.")  # as Ray does


def test_ray_that_does_not_start_is_started_once_more(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(monkeypatch, 1)
    with session.session(load_config("")):
        assert busy.starts == 2
    assert list(temp.iterdir()) == []


def test_ray_that_does_not_start_twice_is_told_in_a_sentence(
    temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Busy(monkeypatch, 9)
    told = r"Ray did not start .* 2 attempts .*timed out during startup.*run the same command again"
    with pytest.raises(Stopped, match=told), session.session(load_config("")):
        pass
    assert busy.starts == 2
    assert list(temp.iterdir()) == []


SESSION = """
import sys
from curation.cluster.session import session
from curation.config.load import load_config
from curation.progress import Stopped
from curation.store.dataset import DatasetError
with session(load_config("run: {object_store_mb: 128}")):
    raise eval(sys.argv[1])
"""


@pytest.mark.parametrize(("error", "kept"), [("KeyError('ours')", True), ("Stopped('limit')", False)])
def test_logs_are_kept_after_a_fault_of_ours(temp: Path, error: str, kept: bool) -> None:
    environment: dict[str, Any] = {**os.environ, "TMPDIR": str(temp)}
    environment.pop("RAY_ADDRESS", None)
    ended = subprocess.run(
        [sys.executable, "-c", SESSION, error],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert error.split("(", maxsplit=1)[0] in ended.stderr
    left = list(temp.iterdir())
    assert len(left) == kept
    if kept:
        assert f"Ray's logs are kept in {left[0]}" in ended.stderr
        assert (left[0] / "raylet.out").exists()
