"""Real models of transformers through the pipeline on Ray: batches, shuffled order, workers that die."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from captioning.base import Caption, CaptionRequest
from captioning.local.vlm import Transformers
from captioning.rewrite import Rewrite
from curation import pipeline
from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.captions import wanted
from curation.commands import caption, status
from curation.config.load import load_config
from curation.config.schema import Config
from curation.decode.pictures import pictures
from curation.driver import captions as driver_captions
from curation.progress import Progress
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from tests import render
from tests.captioning import tiny_vlm
from tests.conftest import CHEAP
from tests.curation.inline import Inline

CLIPS = 32
SETTINGS = [
    "spans.min_seconds=0.9",
    "spans.max_seconds=1.2",
    "spans.trim_seconds=0.05",
    "cut.preset=ultrafast",
    "shards.target_mb=0.4",
    "shards.row_group_mb=0.08",
    "captions.captioner=sidecar",
    "run.object_store_mb=256",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 clips of different lengths and shapes, and a still, without captions."""
    here = tmp_path_factory.mktemp("many")
    footage = here / "footage"
    footage.mkdir()
    for k in range(CLIPS - 1):
        size = [(64, 48), (48, 64), (80, 48)][k % 3]
        render.write_video(footage / f"{k}.mp4", render.scenes([12 + k % 3], size, fps=10, seed=k), fps=10)
    from PIL import Image

    Image.fromarray(render.texture(4, 48, 64)).save(footage / "still.png")
    with Inline():
        pipeline.build(
            Dataset(str(here / "d")), list_sources([str(footage)]), load_config(CHEAP, SETTINGS), Progress()
        )
    return here / "d"


def config(model: Path, *overrides: str) -> Config:
    settings = {"model": str(model), "frames": 3, "side": 56, "max_tokens": 24, "batch_clips": 8}
    return load_config(
        CHEAP,
        [
            *SETTINGS,
            "captions.captioner=transformers",
            f"captions.transformers={json.dumps(settings)}",
            *overrides,
        ],
    )


def alone(dataset: Dataset, captioner: Transformers) -> dict[str, str]:
    """What the model says for each clip when it is asked for that one only."""
    said = {}
    for row in dataset.rows("shards"):
        seen, at = pictures(row["video"]["bytes"], row["duration_s"], captioner.pictures)
        times: dict[str, Any] = {"start_s": row["start_s"], "end_s": row["end_s"]}
        request = CaptionRequest(
            row["clip_id"],
            row["uri"],
            **times,
            is_image=row["fps"] is None,
            pictures=tuple(seen),
            times_s=tuple(at),
        )
        (answer,) = captioner([request])
        assert isinstance(answer, Caption), answer
        said[row["clip_id"]] = answer.text
    return said


def rewritten_alone(rewriter: Rewrite, text: str) -> str | None:
    """What the rewriter makes of a caption when it is asked for that one only, at the second try if need be;
    None where no try gives a sound text."""
    request = CaptionRequest("clip", "film.mp4", 0.0, 1.0, text=text)
    for one in (rewriter, rewriter.again()):
        (answer,) = one([request])
        if isinstance(answer, Caption):
            return answer.text
    return None


def shuffled(patch: pytest.MonkeyPatch, seed: int) -> None:
    """Row groups and clips are handed out in another order."""
    found_by = wanted.wanted

    def other(*arguments: Any, **options: Any) -> Any:
        found = list(found_by(*arguments, **options).items())
        random.Random(seed).shuffle(found)
        return dict(found)

    patch.setattr(driver_captions, "wanted", other)


def captioning_workers() -> list[psutil.Process]:
    """Ray names a worker's process after its actor; those of this test's Ray are meant."""
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ModelCaptioner" in " ".join(process.cmdline()) and any(
                session in " ".join(parent.cmdline()) for parent in process.parents()
            ):
                found.append(process)
    return found


def killer(patch: pytest.MonkeyPatch, kills: list[int], most: int, step: str = "caption") -> None:
    """Kills the process of the actor that captions, after the first answers of a step have come."""
    take = driver_captions.CaptionCommits.take

    def taking(commits: Any, *arguments: Any) -> None:
        take(commits, *arguments)
        if commits._step == step and len(kills) < most:
            for process in captioning_workers()[:1]:
                process.send_signal(signal.SIGKILL)
                kills.append(process.pid)

    patch.setattr(driver_captions.CaptionCommits, "take", taking)


@pytest.mark.sampled("captions on Ray", keep=1)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_each_clip_gets_what_the_model_says_for_it_alone(
    family: str, built: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "qwen2_5_vl" and not tiny_vlm.QWEN_PROCESSOR.is_dir():
        pytest.skip("the real processor of Qwen2.5-VL is not here")
    checkpoint = getattr(tiny_vlm, family)(tmp_path / "made")
    # Random weights may end an answer with its first token: on which clips, differs between processors.
    model = tiny_vlm.edited(checkpoint, tmp_path / "model", "generation_config.json", min_new_tokens=4)
    settings = config(model)
    expected = alone(Dataset(str(built)), settings.captions.transformers)
    assert len(expected) == CLIPS
    assert len(set(expected.values())) > CLIPS // 2  # it tells clips apart
    for seed, most in ((1, 0), (2, 2)):
        kills: list[int] = []
        shutil.copytree(built, tmp_path / f"d{seed}")
        dataset = Dataset(str(tmp_path / f"d{seed}"))
        with monkeypatch.context() as patch:
            shuffled(patch, seed)
            killer(patch, kills, most)
            caption.recaption(dataset, settings, Progress(), nullcontext)
        assert len(kills) == most
        rows = {r["clip_id"]: r for r in dataset.rows("shards")}
        assert {i: r["caption"] for i, r in rows.items()} == expected
        assert verify(dataset) == []
        assert accounting(dataset).check() == []
        made = list(dataset.rows("captions"))
        assert len(made) == CLIPS == len({r["clip_id"] for r in made})
        assert {r["model"] for r in made} == {str(model)}


@pytest.mark.sampled("captions on Ray", keep=1)
def test_each_caption_gets_what_the_rewriter_makes_of_it_alone(
    built: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models in Ray's workers; the rewriter's is killed amid its work."""
    checkpoint = tiny_vlm.llava_onevision(tmp_path / "made")
    model = tiny_vlm.edited(checkpoint, tmp_path / "model", "generation_config.json", min_new_tokens=4)
    rewrite = {"by": "transformers", "model": str(tiny_vlm.rewriter(tmp_path / "lm"))}
    rewrite |= {"max_tokens": 14, "batch_clips": 8}
    settings = config(model, "captions.kind=rewritten", f"captions.rewrite={json.dumps(rewrite)}")
    originals = alone(Dataset(str(built)), settings.captions.transformers)
    made = {i: rewritten_alone(settings.captions.rewrite, text) for i, text in originals.items()}
    expected = {i: text for i, text in made.items() if text is not None}
    assert CLIPS // 4 < len(expected) < CLIPS  # some rewrites fail the checks at both tries
    assert len(set(expected.values())) > len(expected) // 2  # it tells texts apart
    shutil.copytree(built, tmp_path / "d")
    dataset = Dataset(str(tmp_path / "d"))
    kills: list[int] = []
    with monkeypatch.context() as patch:
        shuffled(patch, 1)
        killer(patch, kills, 1, step="rewrite")
        caption.recaption(dataset, settings, Progress(), nullcontext)
    assert len(kills) == 1
    rows = list(dataset.rows("captions"))
    assert {r["clip_id"]: r["text"] for r in rows if r["kind"] == "long"} == originals
    assert {r["clip_id"]: r["text"] for r in rows if r["kind"] == "rewritten"} == expected
    assert len(rows) == CLIPS + len(expected)
    assert {r["clip_id"]: r["caption"] for r in dataset.rows("shards")} == {**originals, **expected}
    assert {f["clip_id"] for f in dataset.rows("failures")} == originals.keys() - expected.keys()
    assert verify(dataset) == []
    assert accounting(dataset).check() == []
    assert status.waiting(dataset, settings) == ""  # what failed is not tried again unasked
