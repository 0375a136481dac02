"""What others made, a list or a dataset, reaches out to nothing that this user did not say himself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from curation.config.schema import Config
from curation.store.address import MORE_PROTOCOLS
from curation.store.dataset import Dataset
from curation.store.schema import SCHEMA_VERSION
from jobs.cli import app
from tests import render
from tests.captioning.chat_server import ChatServer
from tests.conftest import CHEAP
from tests.curation.inline import Inline
from tests.curation.sources.test_lists import SECRET, references, write_list
from tests.loopback import Loopback

SETTINGS = (
    CHEAP
    + """
spans: {min_seconds: 1, max_seconds: 1.5, trim_seconds: 0.1}
rules: {resolution.short_side: {min: 90}}
cut: {preset: ultrafast}
captions: {language: null}
"""
)
WIDER = ["--set", "rules.resolution.short_side.min=50"]
NARROWER = ["--set", "rules.resolution.short_side.min=95"]


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def told(result: Result) -> str:
    return " ".join(result.output.split())


class Sessions:
    """In the place of Ray's: the cluster that each command would have worked on."""

    def __init__(self) -> None:
        self.addresses: list[str | None] = []

    def __call__(self, config: Config) -> AbstractContextManager[None]:
        self.addresses.append(config.run.ray_address)
        return nullcontext()


@pytest.fixture(autouse=True)
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    from curation.cluster import session

    made = Sessions()
    monkeypatch.setattr(session, "session", made)
    with Inline():
        yield made


@pytest.fixture(autouse=True)
def _a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_machine(tmp_path, monkeypatch, "first")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv(MORE_PROTOCOLS, "")


def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "users" / name))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/ (one of them too small for the rules), mine.yaml, and d, a dataset of them."""
    here = tmp_path_factory.mktemp("made")
    (here / "videos").mkdir()
    render.write_video(here / "videos" / "a.mp4", render.scenes([45], (128, 96), fps=15), fps=15)
    render.write_video(here / "videos" / "b.mp4", render.scenes([45], (96, 64), fps=15, seed=7), fps=15)
    (here / "mine.yaml").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch, Inline():
        from curation.cluster import session

        patch.setattr(session, "session", lambda _: nullcontext())
        built = reelmill("build", here / "videos", "--out", here / "d", "--config", here / "mine.yaml")
    assert built.exit_code == 0, (built.output, built.exception)
    return here


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "d", tmp_path / "d"))


def tampered(dataset: Path, **sections: Any) -> Path:
    """As somebody else might have written its dataset.json. Returns the dataset."""
    manifest = json.loads((dataset / "dataset.json").read_text())
    for name, values in sections.items():
        manifest["config"][name] |= values
    (dataset / "dataset.json").write_text(json.dumps(manifest))
    return dataset


def endpoint(url: str, **more: str) -> dict[str, Any]:
    return {"captioner": "endpoint", "endpoint": {"model": "m", "frames": 2, "side": 64, "url": url, **more}}


# --- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_rows_of_a_hostile_list_are_failed_sources(made: Path, tmp_path: Path, options: list[str]) -> None:
    server = Loopback({"/a.mp4": (made / "videos" / "a.mp4").read_bytes(), "/a.txt": b"words"})
    with Loopback({"/refs.json": references(server.address)}) as other, server:
        rows = [
            str(made / "videos" / "a.mp4"),
            f"reference://x.mp4::{other.address}/refs.json",
            f"simplecache::{server.address}/a.mp4",
            f"{server.address}/a.mp4",
        ]
        path = write_list(tmp_path / "l.jsonl", rows)
        result = reelmill("build", path, "--out", tmp_path / "d", "--config", made / "mine.yaml", *options)
    assert (server.got, other.got) == ([], [])
    assert result.exit_code == 0, (result.output, result.exception)
    if options:
        return
    assert "sources 4 = measured 1 + failed 3" in told(result)
    failed = [r for r in Dataset(str(tmp_path / "d")).rows("sources") if r["status"] == "failed"]
    assert {r["uri"] for r in failed} == set(rows[1:])
    assert {(r["stage"], r["error"]) for r in failed} == {("read", "AddressRefused")}


def test_a_caption_file_that_is_a_link_is_left_alone_and_told(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "videos", tmp_path / "videos")
    (tmp_path / "private").write_text("-----BEGIN PRIVATE KEY-----")
    (tmp_path / "videos" / "a.txt").symlink_to(tmp_path / "private")
    build = ["build", tmp_path / "videos", "--out", tmp_path / "d", "--config", made / "mine.yaml"]
    for command in (build, ["select", tmp_path / "d", *WIDER], ["caption", tmp_path / "d"]):
        result = reelmill(*command)
        assert result.exit_code == 0, (result.output, result.exception)
        assert f"caption file left alone: {tmp_path / 'videos' / 'a.txt'}: a link out of" in told(result)
    shards = list(Dataset(str(tmp_path / "d")).rows("shards", ["caption", "captions"]))
    assert shards
    assert "PRIVATE KEY" not in str(shards)


# --- addresses in tables --------------------------------------------------------------------------


def readdressed(dataset: Path, uri: str) -> Path:
    """Its sources are said to lie at `uri`."""
    place = Dataset(str(dataset))
    for part in place.parts("sources"):
        sources = place.read_part("sources", part).to_pylist()
        clips = place.read_part("clips", part).to_pylist()
        place.commit_part(
            part,
            [{**s, "uri": f"{uri}/{Path(s['uri']).name}"} for s in sources],
            [{**c, "keys": dict(c["keys"]), "uri": f"{uri}/{Path(c['uri']).name}"} for c in clips],
        )
    return dataset


def test_addresses_in_a_dataset_s_tables_are_not_contacted(made: Path, dataset: Path) -> None:
    files = {f"/{p.name}": p.read_bytes() for p in (made / "videos").iterdir()}
    with Loopback({**files, "/a.txt": b"words", "/b.txt": b"words"}) as server:
        readdressed(dataset, server.address)
        for command in (["select", *NARROWER], ["caption"], ["status", "--explain"]):
            result = reelmill(command[0], dataset, *command[1:])
            assert result.exit_code in (0, 3), (result.output, result.exception)
        wider = reelmill("select", dataset, *WIDER)
        assert wider.exit_code == 0, (wider.output, wider.exception)
        failed = list(Dataset(str(dataset)).rows("failures"))
        removed = reelmill("remove", dataset, f"{server.address}/b.mp4")
        assert removed.exit_code == 0, removed.output
        assert reelmill("remove", dataset, f"{server.address}/b.mp4", "--undo").exit_code == 0
    assert server.got == []
    assert failed
    assert {(f["stage"], f["error"]) for f in failed} == {("cut", "AddressRefused")}
    assert all("'http'" in f["message"] for f in failed)


# --- servers --------------------------------------------------------------------------------------


def test_a_stranger_s_dataset_sends_no_clip_and_no_key(dataset: Path, sessions: Sessions) -> None:
    with Loopback() as server:
        url = f"{server.address}/v1"
        tampered(dataset, captions=endpoint(url, api_key_env="AWS_SECRET_ACCESS_KEY"))
        before = (dataset / "dataset.json").read_bytes()
        captioned = reelmill("caption", dataset)
        wider = reelmill("select", dataset, *WIDER)
        assert (dataset / "dataset.json").read_bytes() == before
        # A query: no clip is accepted that was not before.
        narrower = reelmill("select", dataset, *NARROWER)
        for command in ("status", "verify", "report"):
            assert reelmill(command, dataset).exit_code in (0, 3)
    assert server.got == []
    assert narrower.exit_code == 0, (narrower.output, narrower.exception)
    assert f"wait for captions of the present captioner; reelmill caption {dataset}" in told(narrower)
    for result in (captioned, wider):
        assert result.exit_code == 2, (result.output, result.exception)
        assert f"clips are sent to {url} (captions.endpoint.url)" in told(result)
        assert f"--set captions.endpoint.url={url}" in told(result)
        assert "--set captions.endpoint.api_key_env=AWS_SECRET_ACCESS_KEY" in told(result)
        assert SECRET not in result.output
    assert sessions.addresses == []


def test_a_stranger_s_rewriter_gets_no_caption_and_no_key(made: Path, dataset: Path) -> None:
    (made / "videos" / "a.txt").write_text("what a person wrote")
    try:
        assert reelmill("caption", dataset).exit_code == 0
    finally:
        (made / "videos" / "a.txt").unlink()
    with Loopback() as server:
        url = f"{server.address}/v1"
        tampered(dataset, captions={"rewrite": {"by": "endpoint", "model": "m", "url": url}})
        captioned, wider = reelmill("caption", dataset), reelmill("select", dataset, *WIDER)
        narrower = reelmill("select", dataset, *NARROWER)
    assert server.got == []
    assert (captioned.exit_code, wider.exit_code, narrower.exit_code) == (2, 2, 0)
    assert f"--set captions.rewrite.url={url}" in told(captioned)


def test_saying_it_allows_it_here_and_from_then_on(
    made: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatServer() as server:
        tampered(dataset, captions=endpoint(server.url, api_key_env="AWS_SECRET_ACCESS_KEY"))
        url = ["--set", f"captions.endpoint.url={server.url}"]
        key = ["--set", "captions.endpoint.api_key_env=AWS_SECRET_ACCESS_KEY"]
        assert reelmill("caption", dataset, *url).exit_code == 2  # the key was not said
        assert reelmill("caption", dataset, "--captioner", "endpoint", *key).exit_code == 2
        other = ["--set", "captions.endpoint.url=http://127.0.0.1:9/v1"]
        assert reelmill("select", dataset, *WIDER, *other).exit_code == 2
        assert server.asked == []
        allowed = reelmill("select", dataset, *WIDER, *url, *key)
        assert allowed.exit_code == 0, (allowed.output, allowed.exception)
        assert {a.headers["Authorization"] for a in server.asked} == {f"Bearer {SECRET}"}
        asked = len(server.asked)
        # Said of this dataset before: the same commands need no option more.
        again = reelmill("caption", dataset, "--set", "captions.endpoint.prompt=short")
        assert again.exit_code == 0, (again.output, again.exception)
        assert len(server.asked) > asked
        # Of the dataset that was there then, though, and not of one that wants something else.
        tampered(dataset, captions=endpoint(server.url, api_key_env="GITHUB_TOKEN", model="other"))
        asked = len(server.asked)
        assert reelmill("caption", dataset).exit_code == 2
        another_machine(tmp_path, monkeypatch, "second")
        tampered(dataset, captions=endpoint(server.url, model="other"))
        assert reelmill("caption", dataset).exit_code == 2
        assert len(server.asked) == asked
        assert reelmill("caption", dataset, *url).exit_code == 0
        assert len(server.asked) > asked


def test_one_s_own_build_goes_on_without_new_options(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "own"
    with ChatServer() as server:
        mine = tmp_path / "mine.yaml"
        mine.write_text(SETTINGS.replace("language: null", "language: null, kind: long"))
        options = [
            "--set",
            "captions.captioner=endpoint",
            "--set",
            f"captions.endpoint={{url: '{server.url}', model: m, frames: 2, side: 64}}",
        ]
        build: list[str | Path] = ["build", made / "videos", "--out", out, "--config", mine, *options]
        assert reelmill(*build).exit_code == 0
        asked = len(server.asked)
        assert asked
        assert reelmill(*build).exit_code == 0
        wider = reelmill("select", out, *WIDER)
        assert wider.exit_code == 0, (wider.output, wider.exception)
        assert len(server.asked) > asked
        assert reelmill("caption", out, "--set", "captions.endpoint.prompt=short").exit_code == 0
        go_on = ["build", made / "videos", "--out", out, "--config", out / "dataset.json"]
        assert reelmill(*go_on).exit_code == 0
        assert reelmill(*go_on[:3], tmp_path / "two", *go_on[4:]).exit_code == 0
        # The same command line on another machine says it itself.
        another_machine(tmp_path, monkeypatch, "second")
        assert reelmill("select", out, *NARROWER).exit_code == 0
        assert reelmill(*build).exit_code == 0
        assert reelmill("caption", out, "--set", "captions.endpoint.prompt=detailed").exit_code == 0
        # This one does not.
        another_machine(tmp_path, monkeypatch, "third")
        refused = reelmill(*go_on)
        assert refused.exit_code == 2
        assert f"--set captions.endpoint.url={server.url}" in told(refused)
        assert reelmill(*go_on, "--set", f"captions.endpoint.url={server.url}").exit_code == 0


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_a_stranger_s_dataset_json_as_a_configuration_contacts_nothing(
    made: Path, dataset: Path, tmp_path: Path, options: list[str]
) -> None:
    with Loopback() as server:
        url = f"{server.address}/v1"
        tampered(dataset, captions=endpoint(url, api_key_env="AWS_SECRET_ACCESS_KEY"))
        shutil.copy(dataset / "dataset.json", tmp_path / "renamed.json")
        for config in (dataset / "dataset.json", tmp_path / "renamed.json"):
            result = reelmill(
                "build", made / "videos", "--out", tmp_path / "new", "--config", config, *options
            )
            assert result.exit_code == 2, (result.output, result.exception)
            assert f"--set captions.endpoint.url={url}" in told(result)
    assert server.got == []
    assert not (tmp_path / "new").exists()


def test_a_file_s_key_name_is_that_of_a_key_unless_it_is_typed(made: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    with Loopback() as server:
        section = f"endpoint, endpoint: {{url: '{server.address}/v1', model: m, api_key_env: DATABASE_URL}}"
        mine.write_text(SETTINGS.replace("language: null", f"captioner: {section}"))
        build = ["build", made / "videos", "--out", tmp_path / "d", "--config", mine]
        result = reelmill(*build)
        assert result.exit_code == 2
        assert "--set captions.endpoint.api_key_env=DATABASE_URL" in told(result)
        assert server.got == []
        assert reelmill(*build, "--set", "captions.endpoint.api_key_env=DATABASE_URL").exit_code == 2
        assert server.got  # it was asked, and does not answer as it should


# --- Ray ------------------------------------------------------------------------------------------


def test_a_dataset_does_not_choose_the_cluster_nor_lift_bounds(
    made: Path, dataset: Path, tmp_path: Path, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"ray_address": "ray://attacker:10001", "child_memory_mb": 999_999, "cut_cpus": 0.5}
    tampered(dataset, run=run)
    wider = reelmill("select", dataset, *WIDER)
    assert wider.exit_code == 0, (wider.output, wider.exception)
    assert set(sessions.addresses) == {None}
    assert "--set run.ray_address=ray://attacker:10001" in told(wider)
    assert "--set run.child_memory_mb=999999" in told(wider)
    now = Dataset(str(dataset)).manifest()["config"]["run"]
    assert (now["ray_address"], now["child_memory_mb"], now["cut_cpus"]) == (None, 4096, 0.5)
    new = ["build", made / "videos", "--out", tmp_path / "new", "--config", dataset / "dataset.json"]
    tampered(dataset, run=run)
    built = reelmill(*new)
    assert built.exit_code == 0, (built.output, built.exception)
    assert set(sessions.addresses) == {None}
    sessions.addresses.clear()
    # One's own goes on as it was said.
    own = ["--set", "run.ray_address=ray://mine:10001"]
    mine = ["build", made / "videos", "--out", tmp_path / "mine", "--config", made / "mine.yaml"]
    assert reelmill(*mine, *own).exit_code == 0
    assert reelmill("select", tmp_path / "mine", *WIDER).exit_code == 0
    assert set(sessions.addresses) == {"ray://mine:10001"}
    sessions.addresses.clear()
    another_machine(tmp_path, monkeypatch, "second")
    assert reelmill(*mine, *own).exit_code == 0
    assert set(sessions.addresses) == {"ray://mine:10001"}


# --- what is printed ------------------------------------------------------------------------------


def test_what_a_dataset_says_of_itself_moves_no_cursor(dataset: Path) -> None:
    import os
    import socket
    from datetime import UTC, datetime

    evil = "\x1b[2J\x1b]0;T\x07"
    now = datetime.now(UTC).isoformat()
    lease = {"host": socket.gethostname() + evil, "pid": os.getpid(), "process_start": 0, "command": evil}
    lease |= {"token": "t", "started": now, "heartbeat": now}
    (dataset / "_lease.json").write_text(json.dumps(lease))
    manifest = json.loads((dataset / "dataset.json").read_text())
    assert manifest["schema_version"] == SCHEMA_VERSION
    for named, said in ((None, "is running"), (evil, "sources_named is")):
        changed = manifest | {"build_ended": False, "sources_named": named or 2}
        (dataset / "dataset.json").write_text(json.dumps(changed))
        for command in ("status", "verify"):
            result = reelmill(command, dataset)
            assert "\x1b" not in result.output
            assert "\x07" not in result.output
            if named or command == "status":
                assert "\\x1b[2J" in result.output
                assert said in result.output
