"""docs/python.md: its snippets run in their order, on a few rendered seconds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import curation
import generation
from curation.cluster import session
from tests import render
from tests.curation.inline import Inline

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inline]:
    """What the workers do; they work in this process, without Ray."""
    monkeypatch.setattr(session, "session", lambda _: nullcontext())
    with Inline() as counts:
        yield counts


@pytest.mark.heavy
def test_the_snippets_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, did: Inline, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("footage/a", "footage/b", "other-footage/c"), 1):
        video = tmp_path / f"{name}.mp4"
        video.parent.mkdir(exist_ok=True)
        pan = render.pan(seed, (192, 144), fps=20, seconds=2, speed=0.06 * seed)
        render.write_video(video, pan, fps=20)
        video.with_suffix(".txt").write_text(f"a picture named {video.stem}, which moves")
    snippets = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    known: dict[str, Any] = {}
    said = []
    for snippet in snippets:
        exec(compile(snippet, f"docs/python.md: {snippet.splitlines()[0]}", "exec"), known)
        said.append(capsys.readouterr().out)
    built, again, estimated, selected, read, decoded, trained, _, evaluated = said
    assert "clips 2 = accepted 2 + rejected 0 + failed 0" in built
    assert again == ""
    assert did.measured == {"a.mp4": 1, "b.mp4": 1, "c.mp4": 1}
    assert "quality" in estimated
    assert selected.splitlines()[:2] == ["{'motion.speed': 1}", "complete"]
    assert selected.endswith("1 clips as mp4 and txt\n")
    assert len(read.splitlines()) == 2
    assert decoded.splitlines() == ["a picture named b, which moves (36, 144, 192, 3)", "(2, 144, 192, 3)"]
    assert trained.split() == [str(tmp_path / "run" / stage) for stage in ("stage1", "stage2")]
    assert known["video"].name == "final.mp4"
    assert known["final"] == known["previews"][0].parent / "final.mp4"
    assert all(path.is_file() for path in (known["video"], known["final"], known["larger"]))
    assert evaluated.endswith("evaluation.html\n")
    assert not list(tmp_path.rglob("_lease*"))


@pytest.mark.parametrize("package", [curation, generation])
def test_the_page_names_every_function(package: Any) -> None:
    api = __import__(f"{package.__name__}.api").api
    imported = re.findall(rf"^from {package.__name__} import (.+)$", PAGE.read_text(), re.MULTILINE)
    assert {name for names in imported for name in names.split(", ")} == set(package.__all__)
    for name in package.__all__:
        assert inspect.getdoc(getattr(api, name)), name
