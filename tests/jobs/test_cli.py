"""The command line: wrong usage is reported before any work and changes nothing; a complete session works."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from curation.config.schema import Config
from curation.store.dataset import Dataset
from curation.store.schema import SCHEMA_VERSION
from jobs.cli import app
from tests import render
from tests.conftest import CHEAP
from tests.curation import dataset_fixture
from tests.curation.inline import Inline

ROOT = Path(__file__).parents[2]
COMMANDS = ["build", "select", "caption", "remove", "report", "status", "verify", "export", "judge", "advise"]
COMMANDS += ["train", "sample", "enhance", "evaluate", "convert", "corpus", "recipe", "config"]


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in folder.rglob("*")
        if p.is_file()
    } | {str(p.relative_to(folder)) + "/": (0, b"") for p in folder.rglob("*") if p.is_dir()}


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start of Ray or of a build fails the test."""
    from curation import pipeline
    from curation.cluster import session
    from curation.driver import prepare

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work was started")

    monkeypatch.setattr(session, "session", refuse)
    monkeypatch.setattr(pipeline, "build", refuse)
    monkeypatch.setattr(prepare, "find_work", refuse)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with sources, a cheap configuration, and files and folders that are no datasets."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"video")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "cheap.yaml").write_text(CHEAP)
    (tmp_path / "wrong.yaml").write_text("spans: {max_secondz: 3}")
    (tmp_path / "list.csv").write_text("title\nx\n")
    other = {"schema_version": SCHEMA_VERSION + 1}
    Dataset(str(tmp_path / "newer")).write("dataset.json", json.dumps(other).encode())
    return tmp_path


CAPTIONER = ["--set", "captions.captioner=transformers"]
BUILD = ["build", "{videos}", "--out", "{new}", "--config", "{cheap.yaml}"]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "{missing.mp4}", *BUILD[2:]], ["{missing.mp4}", "no such file"]),
        (["build", "{videos}", "{missing}", *BUILD[2:]], ["{missing}"]),
        (["build", "{nothing}", *BUILD[2:]], ["{nothing}", "no video"]),
        (["build", "{videos}/*.avi", *BUILD[2:]], ["{videos}/*.avi", "nothing matches"]),
        (["build", "{list.csv}", *BUILD[2:]], ["{list.csv}", "path column"]),
        ([*BUILD, "--set", "spans.max_secondz=3"], ["spans.max_secondz", "max_seconds"]),
        ([*BUILD, "--set", "nonsense"], ["nonsense", "key=value"]),
        ([*BUILD, "--set", "filters.moton={}"], ["moton", "motion"]),
        ([*BUILD, "--set", "filters.motion.width=wide"], ["motion.width", "wide"]),
        ([*BUILD, "--set", "cut.crf=["], ["cut.crf=["]),
        ([*BUILD, "--set", "rules.aesthetics.mean.min=5"], ["rules.aesthetics.mean", "motion.speed"]),
        ([*BUILD, "--set", "rules.motion.speed.min=fast"], ["rules.motion.speed", "fast"]),
        ([*BUILD[:5], "{wrong.yaml}"], ["{wrong.yaml}", "max_secondz"]),
        ([*BUILD[:5], "{missing.yaml}"], ["{missing.yaml}"]),
        ([*BUILD[:5], "demmo"], ["demmo"]),
        ([*BUILD[:3], "{nothing}", *BUILD[4:]], ["{nothing}", "holds something else"]),
        ([*BUILD[:3], "{videos}", *BUILD[4:]], ["{videos}", "holds something else"]),
        ([*BUILD[:3], "{file}", *BUILD[4:]], ["{file}", "is a file"]),
        ([*BUILD[:3], "{newer}", *BUILD[4:]], ["{newer}", "schema version"]),
        ([*BUILD, "--limit", "0"], ["--limit", "greater than or equal to 1"]),
        ([*BUILD, "--limmit", "3"], ["--limmit"]),
        (["build", "{videos}"], ["--out"]),
        (["build", "--out", "{new}"], ["Missing argument"]),
        (["bild"], ["bild"]),
        (
            [*BUILD, *CAPTIONER, "--set", "captions.transformers.model=/nowhere"],
            ["captions.transformers.model"],
        ),
        ([*BUILD, *CAPTIONER, "--set", "captions.transformers.frmes=3"], ["transformers.frmes", "frames"]),
        ([*BUILD, "--set", "captions.captioner=endpoint"], ["captions.endpoint.url"]),
        ([*BUILD, "--set", "rules.caption.wrods.min=3"], ["rules.caption.wrods", "caption.words"]),
        (["caption", "{nothing}", "--set", "cut.crf=3"], ["cut.crf=3", "captions."]),
        (["caption", "{nothing}", "--set", "rules.motion.speed.min=0"], ["rules.motion", "select"]),
        *((["status", f"{{{what}}}"], [f"{{{what}}}"]) for what in ("new", "nothing", "file", "newer")),
        *(
            ([command, "{nothing}"], ["{nothing}", "not a dataset"])
            for command in ("select", "caption", "report", "status", "verify", "advise")
        ),
        (["judge", "{list.csv}", "{nothing}"], ["{nothing}", "not a dataset"]),
        (["judge", "{list.csv}"], ["DATASET"]),
        (["remove", "{nothing}", "a.mp4"], ["{nothing}", "not a dataset"]),
        (["remove", "{nothing}"], ["SOURCES"]),
        (["status", "{nothing}", "{videos}"], ["--explain"]),
        (["status", "{nothing}", "--set", "cut.crf=20"], ["--explain"]),
        ([*BUILD, "--prune", "--limit", "3"], ["--prune", "--limit"]),
        (["export", "{nothing}", "--to", "files", "--out", "{new}"], ["{nothing}", "not a dataset"]),
        (["export", "{nothing}", "--to", "zip", "--out", "{new}"], ["zip", "webdataset"]),
    ],
)
def test_wrong_usage_gives_code_2_and_a_message_and_writes_nothing(
    place: Path, arguments: list[str], says: list[str]
) -> None:
    def full(text: str) -> str:
        return re.sub(r"\{(.+?)\}", lambda m: str(place / m[1]) if m[1] else m[0], text)

    before = tree(place)
    result = reelmill(*(full(a) for a in arguments))
    assert result.exit_code == 2, (result.output, result.exception)
    told = re.sub(r"\s+", " ", result.stderr)
    assert [word for word in map(full, says) if word not in told] == [], told
    assert "Traceback" not in told
    assert tree(place) == before


@pytest.mark.usefixtures("no_work")
def test_a_missing_model_is_reported_before_the_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filters.base import MissingModel
    from filters.text import Text

    def check(_: Text) -> None:
        raise MissingModel("filters.text: no weights; install reelmill[offline]")

    monkeypatch.setattr(Text, "check", check)
    before = tree(place)
    arguments: list[str | Path] = [
        "build",
        place / "videos",
        "--out",
        place / "new",
        "--config",
        place / "cheap.yaml",
    ]
    result = reelmill(*arguments, "--set", "filters.text={}")
    assert (result.exit_code, tree(place)) == (2, before)
    assert "reelmill[offline]" in result.stderr


def test_an_export_into_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    dataset_fixture.build(str(tmp_path / "d"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for out in ("mine", "file"):
        result = reelmill("export", tmp_path / "d", "--to", "files", "--out", tmp_path / out)
        assert result.exit_code == 2, result.output
        assert str(tmp_path / out) in result.stderr
    assert tree(tmp_path) == before


def test_select_refuses_a_rule_before_it_changes_a_verdict(tmp_path: Path, no_work: None) -> None:
    dataset_fixture.build(str(tmp_path / "d"))
    before = tree(tmp_path)
    for override in ("rules.text.area.max=0.1", "rules.motion.speed.min=9", "nonsense"):
        result = reelmill("select", tmp_path / "d", "--set", override)
        assert result.exit_code == 2, result.output
        assert tree(tmp_path) == before


def test_an_interrupt_gives_code_130_and_says_how_to_resume(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curation.cluster import session

    def interrupted(_: Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "session", interrupted)
    result = reelmill("build", place / "videos", "--out", place / "new", "--config", place / "cheap.yaml")
    assert result.exit_code == 130
    assert "same command again" in result.stderr


@pytest.mark.parametrize("command", ["build", "train"])
def test_ray_that_does_not_start_is_a_sentence_and_code_3(
    place: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def busy(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", busy)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    arguments: dict[str, list[str | Path]] = {
        "build": [place / "videos", "--config", place / "cheap.yaml"],
        "train": ["stage1", "--data", place / "nothing", "--workers", "2"],
    }
    result = reelmill(command, *arguments[command], "--out", place / "new")
    assert (result.exit_code, type(result.exception)) == (3, SystemExit), result.output
    assert "stopped: Ray did not start on this machine" in result.stderr
    assert "run the same command again" in result.stderr
    assert "logs are kept" not in result.output


def test_a_damaged_dataset_does_not_verify(tmp_path: Path) -> None:
    dataset = dataset_fixture.build(str(tmp_path / "d"))
    shard = Path(dataset.path(f"shards/{dataset.parts('shards')[0]}.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])
    result = reelmill("verify", tmp_path / "d")
    assert result.exit_code == 1
    assert shard.stem in result.stdout
    assert "OK" not in result.stdout


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = reelmill(command, "--help")
    assert result.exit_code == 0
    options = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    for option in options:
        assert (option.metavar or option.opts[0]) in result.output, option.name
        assert option.help is None or option.help[:30] in result.output
    assert len(result.output.split("\n")[2].strip()) > 20  # the purpose of the command


def test_select_says_that_it_captions() -> None:
    assert "and captioned if a model captions" in " ".join(reelmill("select", "--help").output.split())
    assert "runs no model" not in (ROOT / "README.md").read_text()


def test_the_commands_are_those_that_are_tested() -> None:
    help_text = reelmill("--help").output
    listed = re.findall(r"^  ([a-z]+) ", help_text.split("Commands:")[1], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert reelmill().exit_code == 2  # and the help is printed


def test_a_real_process_has_the_same_help_and_exit_codes(tmp_path: Path) -> None:
    """A cluster runs a command by `ray job submit … -- python -m jobs.build`."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    helped = run("jobs.build", "--help")
    assert helped.returncode == 0
    assert "--dry-run" in helped.stdout
    missing, out = str(tmp_path / "missing.mp4"), str(tmp_path / "d")
    settings = tmp_path / "cheap.yaml"
    settings.write_text(CHEAP)
    for module in (["jobs.build"], ["jobs.cli", "build"]):
        wrong = run(*module, missing, "--out", out, "--config", str(settings))
        assert wrong.returncode == 2
        assert wrong.stderr.strip() == f"reelmill: {missing}: there is no such file or folder"
        assert wrong.stdout == ""
    assert not Path(out).exists()


MODULES = [
    "build",
    "select",
    "caption",
    "train",
    "sample",
    "enhance",
    "convert",
    "corpus",
    "evaluate",
    "recipe",
]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_the_command_of_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m jobs.NAME` runs in this process, because starting ten processes takes half a minute."""
    ran: list[typer.Typer] = []
    monkeypatch.setattr("jobs.common.leave", ran.append)
    runpy.run_module(f"jobs.{name}", run_name="__main__", alter_sys=True)
    (alone,) = ran
    options = {option.name for option in typer.main.get_command(alone).params}
    assert options - {"help"} == {option.name for option in typer.main.get_command(app).commands[name].params}  # type: ignore[attr-defined]
    assert CliRunner().invoke(alone, ["--help"]).exit_code == 0


# --- a complete session ------------------------------------------------------------------------------


def sums(output: str) -> dict[str, list[int]]:
    """{"sources": [3, 2, 1]} of `sources 3 = measured 2 + failed 1`."""
    return {
        line.split()[0]: [int(n) for n in re.findall(r"\b\d+\b", line.split("(")[0])]
        for line in output.split("\n")
        if re.match(r"(sources|clips)\b.* = ", line)
    }


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    render.write_video(folder / "a.mp4", render.scenes([30, 30], (160, 96), fps=15), fps=15)
    render.write_video(folder / "b.mkv", render.scenes([45], (128, 128), fps=15, seed=7), fps=15)
    (folder / "torn.mp4").write_bytes(b"no video")
    (folder / "b.txt").write_text("a picture that drifts")
    return folder


SETTINGS = (
    CHEAP
    + """
spans: {min_seconds: 1, max_seconds: 2, trim_seconds: 0.1}
rules: {resolution.short_side: {min: 100}}
cut: {preset: ultrafast}
run: {cut_cpus: 0.5, measure_cpus: 0.5}
"""
)


def test_a_session(footage: Path, tmp_path: Path, ray_session: None) -> None:
    settings, out = tmp_path / "mine.yaml", tmp_path / "d"
    settings.write_text(SETTINGS)
    build: list[str | Path] = ["build", footage, "--out", out, "--config", settings]

    dry = reelmill(*build, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "3 sources named: 3 to measure" in dry.stdout
    assert not out.exists()

    built = reelmill(*build)
    assert built.exit_code == 0, (built.output, built.exception)
    counts = sums(built.stdout)
    assert counts["sources"] == [3, 2, 1]
    total, accepted, rejected, failed = counts["clips"]
    assert total == accepted + rejected + failed
    assert min(accepted, rejected) > 0
    assert failed == 0
    assert f"{footage}/torn.mp4" in built.stderr
    assert str(out) in built.stdout
    assert (out / "report.html").exists()

    told = reelmill("status", out)
    assert told.exit_code == 0
    assert sums(told.stdout) == counts
    assert told.stdout.rstrip().endswith("\ncomplete")

    verified = reelmill("verify", out, "--decode")
    assert (verified.exit_code, verified.stdout.strip()) == (0, "OK")

    wider = reelmill("select", out, "--set", "rules.resolution.short_side.min=90")
    assert wider.exit_code == 0, (wider.output, wider.exception)
    assert sums(wider.stdout)["clips"] == [total, total, 0, 0]
    manifest = Dataset(str(out)).manifest()
    assert manifest["rules"] == {"resolution.short_side": {"min": 90.0, "max": None}}
    assert "\ncomplete" in reelmill("status", out).stdout
    assert reelmill("verify", out, "--decode").stdout.strip() == "OK"

    narrower = reelmill("select", out, "--set", "rules.resolution.short_side.min=100")
    assert sums(narrower.stdout)["clips"] == [total, accepted, rejected, 0]

    (out / "report.html").unlink()
    reported = reelmill("report", out)
    assert reported.exit_code == 0
    assert Path(reported.stdout.strip()) == out / "report.html"
    assert (out / "report.html").stat().st_size > 1000

    exported = reelmill("export", out, "--to", "files", "--out", tmp_path / "files")
    assert exported.exit_code == 0, exported.output
    assert f"{accepted} clips" in exported.stdout
    assert len(list((tmp_path / "files").glob("*.mp4"))) == accepted
    assert {p.read_text() for p in (tmp_path / "files").glob("*.txt")} == {"a picture that drifts"}

    again = reelmill(*build)
    assert again.exit_code == 0
    assert sums(again.stdout) == counts
    assert "measure: 0 sources (3 done before)" in again.stderr


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inline]:
    """Commands that work in this process, without Ray."""
    from curation.cluster import session

    monkeypatch.setattr(session, "session", lambda _: nullcontext())
    with Inline() as did:
        yield did


def test_sources_are_added_and_removed(tmp_path: Path, inline: Inline) -> None:
    videos, out, settings = tmp_path / "videos", tmp_path / "d", tmp_path / "mine.yaml"
    videos.mkdir()
    for k, name in enumerate(("a.mp4", "b.mp4", "c \x1b[31m.mp4")):
        render.write_video(videos / name, render.scenes([30], (128, 96), fps=20, seed=k), fps=20)
    (videos / "torn.mp4").write_bytes(b"torn")
    settings.write_text(SETTINGS.replace("{min: 100}", "{min: 90}"))
    build: list[str | Path] = ["build", videos, "--out", out, "--config", settings]
    assert reelmill(*build).exit_code == 0

    why = reelmill("status", out, "--explain")
    assert why.exit_code == 0, why.output
    assert "4 sources named: 0 to measure, 4 done before" in why.stdout
    why = reelmill("status", out, "--explain", "--set", "cut.crf=30", "--set", "filters.quality.frames=3")
    assert "configuration: cut.crf: 18 -> 30" in why.stdout
    assert "3 to score again" in why.stdout
    assert "the settings of cut changed" in why.stdout
    why = reelmill("status", out, videos / "a.mp4", "--explain", "--config", settings)
    assert "sources that were not named; they stay (--prune removes them): 3 (" in why.output.replace(
        "\n", " "
    )
    assert "\x1b" not in why.output  # a name may not write to the terminal
    assert "\\x1b[31m.mp4" in why.output

    gone = reelmill("remove", out, videos / "a.mp4")
    assert gone.exit_code == 0, gone.output
    assert "removed 1 sources, 1 clips, 1 shard rows" in gone.stdout
    assert sums(gone.stdout)["sources"] == [3, 2, 1]
    assert "removed before" in reelmill("remove", out, videos / "a.mp4").stdout
    assert reelmill("remove", out, videos / "nothere.mp4").exit_code == 2
    left_out = reelmill(*build)
    assert sums(left_out.stdout)["sources"] == [3, 2, 1]
    assert "sources that were removed with reelmill remove; they are left out: 1 (" in left_out.stderr
    assert reelmill("remove", out, videos / "b.mp4", "--undo").exit_code == 2
    assert reelmill("remove", out, videos / "a.mp4", "--undo").exit_code == 0
    assert sums(reelmill(*build).stdout)["sources"] == [4, 3, 1]

    (videos / "b.mp4").unlink()
    assert sums(reelmill(*build).stdout)["sources"] == [4, 3, 1]
    before = tree(out)
    dry = reelmill(*build, "--prune", "--dry-run")
    assert f"removed with their clips (--prune): 1 ({videos}/b.mp4)" in dry.stdout.replace("\n", " ")
    assert tree(out) == before
    pruned = reelmill(*build, "--prune")
    assert f"removed with their clips (--prune): 1 ({videos}/b.mp4)" in pruned.stderr
    assert sums(pruned.stdout)["sources"] == [3, 2, 1]
    assert reelmill("verify", out, "--decode").stdout.strip() == "OK"


def test_too_many_failures_give_code_3(tmp_path: Path, inline: Inline) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "torn.mp4").write_bytes(b"torn")
    (tmp_path / "mine.yaml").write_text(SETTINGS)
    build: list[str | Path] = ["build", tmp_path / "videos", "--out", tmp_path / "d"]
    build += ["--config", tmp_path / "mine.yaml"]
    stopped = reelmill(*build, "--set", "run.max_failed_fraction=0.5")
    assert stopped.exit_code == 3
    assert "1 of 1 sources failed" in stopped.stderr
    assert "--retry-failed" in stopped.stderr
    assert reelmill("status", tmp_path / "d").exit_code == 3
    assert reelmill(*build).exit_code == 0
    assert reelmill("status", tmp_path / "d").exit_code == 0


def test_only_one_command_at_a_time_works_on_a_dataset(tmp_path: Path, inline: Inline) -> None:
    (tmp_path / "videos").mkdir()
    render.write_video(tmp_path / "videos" / "a.mp4", render.scenes([30], (128, 96), fps=20), fps=20)
    (tmp_path / "mine.yaml").write_text(SETTINGS)
    build: list[str | Path] = ["build", tmp_path / "videos", "--out", tmp_path / "d"]
    build += ["--config", tmp_path / "mine.yaml"]
    assert reelmill(*build).exit_code == 0
    code = "import sys, time; from curation.store.dataset import Dataset\n"
    code += "from curation.store.lease import Lease\n"
    code += "with Lease(Dataset(sys.argv[1]), 'build'): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "d")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = tree(tmp_path / "d")
        select: list[str | Path] = ["select", tmp_path / "d", "--set", "rules.motion.speed.max=1"]
        for command in (build, select, ["remove", tmp_path / "d", tmp_path / "videos" / "a.mp4"]):
            refused = reelmill(*command)
            assert refused.exit_code == 2, refused.output
            assert f"pid {holder.pid}" in refused.stderr
        assert tree(tmp_path / "d") == before
        assert f"pid {holder.pid}" in reelmill("status", tmp_path / "d").stdout
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    assert reelmill(*build).exit_code == 0  # a dead holder does not block
    assert not (tmp_path / "d" / "_lease.json").exists()


def test_select_takes_rules_only(tmp_path: Path, no_work: None) -> None:
    dataset = dataset_fixture.build(str(tmp_path / "d"))
    before = tree(tmp_path)
    for override in ("cut.crf=30", "spans.max_seconds=5"):
        result = reelmill("select", dataset.location, "--set", override)
        assert result.exit_code == 2
        assert override in result.output
        assert "reelmill build" in result.output
    assert tree(tmp_path) == before


def test_local_paths_on_a_cluster_give_a_warning(
    footage: Path, tmp_path: Path, inline: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that a node wrote to its own disk is reported immediately with a remedy, too."""
    from curation import pipeline
    from curation.cluster import session

    (tmp_path / "mine.yaml").write_text(SETTINGS)
    build: list[str | Path] = ["build", footage, "--out", tmp_path / "d", "--config", tmp_path / "mine.yaml"]
    written = pipeline.written

    def elsewhere(tasks: Any, config: Any, location: str, config_hash: str) -> Iterator[dict[str, Any]]:
        for row in written(tasks, config, location, config_hash):
            (tmp_path / "d" / "shards" / f"{row['name']}.parquet").unlink()
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(session, "nodes", lambda: 2)
        patch.setattr(pipeline, "written", elsewhere)
        refused = reelmill(*build)
    assert refused.exit_code == 2, refused.output
    said = f"all 2 nodes of this cluster must see {footage}/"
    assert said in refused.stderr
    assert f"and {tmp_path / 'd'}: on a disk they share" in refused.stderr
    assert re.search(r"shards/\S+ was written on another node", refused.stderr)
    alone = reelmill(*build)
    assert alone.exit_code == 0, alone.output
    assert "nodes" not in alone.stderr
    assert reelmill("verify", tmp_path / "d").exit_code == 0
