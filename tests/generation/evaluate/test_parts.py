"""The evaluation of a whole run: its inputs, the kept parts, and errors before the work."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from generation.config import Data
from generation.data.plan import open_selection
from generation.evaluate import following, judge, parts, real_clips, restoring
from generation.evaluate.figures import Figures, Found
from generation.evaluate.following import JudgeUnfit
from generation.evaluate.parts import Evaluation
from generation.evaluate.settings import Settings
from tests.generation import synthetic, tiny_runs
from tests.generation.synthetic import Row

CPU = torch.device("cpu")
COLOURS = list(synthetic.COLOURS)
SETTINGS: dict[str, Any] = {
    "clips": 4,
    "prompts": 5,
    "untrained": 3,
    "evaluations": [1, 2],
    "attributes": {"colour": COLOURS},
    "swap": {"moving": "standing"},
    "judge_clips": 64,
    "judge_steps": 50,
}
PARTS = ("stage1", "stage2", "chain")


def config(stage: str, side: int, **changed: Any) -> Any:
    values = {"data": {"buckets": [{"frames": 5, "height": side, "width": side}], "validation_fraction": 0.3}}
    return tiny_runs.tiny(stage, **tiny_runs.merged({**values, "train": {"steps": 6}}, changed))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), 30, frames=5, width=16, height=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run whose Stage I makes videos of 8 pixels a side, and Stage II of 16."""
    run = tmp_path_factory.mktemp("runs") / "run"
    for stage, side in (("stage1", 8), ("stage2", 16)):
        tiny_runs.train(config(stage, side), dataset, run)
    return run


@pytest.fixture(scope="module")
def evaluated(trained: Path, dataset: Path) -> Path:
    """The run with an evaluation."""
    opened(trained, dataset).write()
    return trained


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of the evaluated run, which a test may change."""
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


def opened(
    run: Path, data: Path, held_out: Path | None = None, wanted: tuple[str, ...] = (), **changed: Any
) -> Evaluation:
    settings = Settings.model_validate({**SETTINGS, **changed})
    place = str(held_out) if held_out else None
    return Evaluation(
        run, str(data), place, run / "evaluation", settings, wanted, None, CPU, lambda text: None
    )


def content(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation" / "evaluation.json").read_text())
    return found


def numbers(figures: Figures, path: str = "") -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key, value in figures.items():
        found |= numbers(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


class Counted:
    """Counts computations of each part and of the judge. truly: whether they are computed as well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, truly: bool) -> None:
        self.done: list[str] = []
        for module, name, told in (
            (following, "evaluate_stage1", "stage1"),
            (restoring, "evaluate_stage2", "stage2"),
            (following, "evaluate_chain", "chain"),
            (judge, "train", "judge"),
        ):
            monkeypatch.setattr(module, name, self._counting(getattr(module, name) if truly else None, told))
        if not truly:
            monkeypatch.setattr(following, "sample_untrained", lambda *_: None)

    def _counting(self, function: Callable[..., Any] | None, name: str) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.done.append(name)
            if function is not None:
                return function(*args)
            if name == "judge":
                return judge.Judge(judge.JudgeNet(args[2], 16), args[2], 16, dict.fromkeys(args[2], 1.0))
            return Found({"usual": {"psnr_db": 20.0 + len(self.done)}})

        return counted

    def of(self, made: Evaluation) -> list[str]:
        self.done.clear()
        made.write()
        return list(self.done)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch, truly=False)


# ---- figures


def test_all_parts_have_their_figures_and_controls(evaluated: Path) -> None:
    found = content(evaluated)
    figures = found["figures"]
    assert list(figures) == ["judge", *PARTS]
    there = numbers(figures)
    read = ("colour", "jointly", "jointly_over_chance")
    rows = ["stage1", *(f"stage1.{c}" for c in ("shuffled_prompts", "standing_still", "untrained"))]
    rows += ["chain", *(f"chain.{c}" for c in ("shuffled_prompts", "standing_still", "stage1_bicubic"))]
    stage2 = ("bicubic", "low_quality", "evaluations_1", "evaluations_2", "usual", "shuffled_prompts")
    rows += [f"stage2.{row}.shown" for row in (*stage2, "wrong_prompts", "untrained")]
    wanted = {f"{row}.{key}" for row in rows for key in read} | {"judge.accuracy.colour"}
    sets = ("real", "two_stage", "stage1_bicubic", "static", "real_static")
    wanted |= {f"chain.{name}.{key}" for name in ("frechet", "kernel_distance") for key in sets}
    wanted |= {"stage2.wrong_prompts_cost_db", "stage2.detail_over_fewest", "stage2.usual.gain_db"}
    assert wanted <= there.keys()
    assert all(there[path] is not None for path in wanted)
    assert all(value is None or math.isfinite(value) for value in there.values())
    nothing = {path for path, value in there.items() if value is None}
    # The kernel distance of so few clips may be below 0, and then there is no ratio.
    pairs = (("two_stage", "stage1_bicubic"), ("stage1_bicubic", "static"))
    distance = {name: there[f"chain.kernel_distance.{name}"] or 0.0 for name in sets}
    meant = {f"chain.{one}_over_{other}" for one, other in pairs if distance[other] <= 0}
    meant |= {path for path in there if path.endswith("other_gain_db")} | {"stage1.spread"}
    assert nothing == meant
    assert there["judge.accuracy.colour"] == 1.0
    assert (there["stage1.videos"], there["chain.videos"]) == (5, 5)
    assert "no prompt comes twice" in found["notes"][0]
    assert found["settings"]["judge_steps"] == 50
    assert found["held_out"] is None


def test_prompts_are_captions_of_held_out_clips(evaluated: Path, dataset: Path) -> None:
    made = opened(evaluated, dataset)
    assert made.shape.model_dump(exclude={"crop"}) == {"frames": 5, "height": 16, "width": 16}
    assert made.texts == made.truth.captions[:5]
    assert (made.made.previews.shape, made.few.video.shape) == ((5, 3, 5, 8, 8), (4, 3, 5, 16, 16))
    assert made.made.finals is not None
    assert made.made.finals.shape == (5, 3, 5, 16, 16)
    selection = open_selection(str(dataset), made.config.data)
    apart = {selection.index.clip_id(row) for row in selection.rows(validation=True)}
    assert set(made.truth.ids) <= apart
    assert apart.isdisjoint(made.trained_on.ids)
    assert len(made.trained_on) == 64
    assert len(made.captions) == 30 - len(apart)


def test_clips_are_held_out_that_no_stage_was_trained_on(run: Path, dataset: Path) -> None:
    """Stage I held fewer clips out than Stage II."""
    path = run / "stage1" / "config.json"
    changed = json.loads(path.read_text())
    changed["data"]["validation_fraction"] = 0.1
    path.write_text(json.dumps(changed))
    fewer = opened(run, dataset)
    data = Data.model_validate(changed["data"])
    selection = open_selection(str(dataset), data)
    apart = {selection.index.clip_id(row) for row in selection.rows(validation=True)}
    assert 1 <= len(apart) < 5
    assert set(fewer.truth.ids) == apart
    assert apart.isdisjoint(fewer.trained_on.ids)


def test_without_attributes_there_is_no_judge(run: Path, dataset: Path) -> None:
    made = opened(run, dataset, attributes={})
    made.write()
    figures = content(run)["figures"]
    assert list(figures) == [*PARTS]
    assert "colour" not in figures["stage1"]
    assert "frechet" not in figures["chain"]
    assert len(made.trained_on) == 5
    assert sum("without attributes" in note for note in content(run)["notes"]) == 2


# ---- kept parts


def test_what_was_made_of_the_same_is_kept(run: Path, dataset: Path, counted: Counted) -> None:
    before = content(run)
    assert counted.of(opened(run, dataset)) == []
    assert content(run) == {**before, "run": str(run)}
    assert counted.of(opened(run, dataset, wanted=("stage2",))) == []
    assert content(run)["figures"] == {part: before["figures"][part] for part in ("judge", "stage2")}


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"evaluations": [1]}, [*PARTS]),
        ({"swap": {}}, [*PARTS]),
        ({"judge_steps": 51}, ["judge", *PARTS]),
        ({"judge_clips": 63}, ["judge", *PARTS]),
        ({"prompts": 4, "clips": 3}, ["judge", *PARTS]),  # the judge is examined on other clips
        ({"attributes": {"colour": COLOURS[::-1]}}, ["judge", *PARTS]),
        ({"bars": [{"figure": "stage2.usual.psnr_db", "min": 1000}]}, []),
    ],
)
def test_with_other_settings_it_is_computed_again(
    run: Path, dataset: Path, counted: Counted, changed: dict[str, Any], again: list[str]
) -> None:
    assert counted.of(opened(run, dataset, **changed)) == again
    assert counted.of(opened(run, dataset, **changed)) == []
    assert [bar["passed"] for bar in content(run)["bars"]] == ([] if again else [False])


def change_config(run: Path, stage: str, section: str, **values: Any) -> None:
    path = run / stage / "config.json"
    found = json.loads(path.read_text())
    found[section] |= values
    path.write_text(json.dumps(found))


def test_with_another_way_of_sampling_it_is_computed_again(
    run: Path, dataset: Path, counted: Counted
) -> None:
    change_config(run, "stage2", "sampling", steps=1)
    assert counted.of(opened(run, dataset)) == ["stage2", "chain"]
    change_config(run, "stage2", "degradation", scale=[2, 2])
    assert counted.of(opened(run, dataset)) == ["stage2", "chain"]
    change_config(run, "stage1", "sampling", steps=1)
    with pytest.raises(
        ValueError, match=r"videos holds videos of another evaluation \(other values of sampling\); remove"
    ):
        opened(run, dataset).write()
    assert not (run / "evaluation" / "evaluation.json").exists()
    shutil.rmtree(run / "evaluation" / "videos")
    assert counted.of(opened(run, dataset)) == ["stage1", "chain"]


def test_with_other_weights_it_is_computed_again(
    run: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, counted = content(run)["figures"], Counted(monkeypatch, truly=True)
    tiny_runs.train(config("stage2", 16, train={"steps": 8}), dataset, run)
    assert counted.of(opened(run, dataset)) == ["stage2", "chain"]
    after = content(run)["figures"]
    assert after["stage1"] == before["stage1"]
    assert after["stage2"]["usual"] != before["stage2"]["usual"]
    assert after["stage2"]["bicubic"] == before["stage2"]["bicubic"]
    tiny_runs.train(config("stage1", 8, train={"steps": 8}), dataset, run)
    with pytest.raises(
        ValueError, match=r"another evaluation \(other values of weights_hash\); .* another --out"
    ):
        opened(run, dataset).write()


def test_another_dataset_is_looked_at_again(
    run: Path, dataset: Path, tmp_path: Path, counted: Counted
) -> None:
    others = synthetic.write_dataset(tmp_path / "others", 6, frames=5, width=16, height=16, seed=3)
    made = opened(run, dataset, others)
    shutil.rmtree(run / "evaluation" / "videos")
    assert counted.of(made) == ["judge", *PARTS]
    assert len(made.truth) == 5
    assert set(made.texts) <= {row["caption"] for row in real_rows(others)}
    assert content(run)["held_out"] == str(others)


def real_rows(dataset: Path) -> list[Row]:
    from generation.data.shards import clips

    return list(clips(dataset, ["caption"]))


# ---- bars


def test_bars_of_parts_that_were_not_wanted_are_left_out_and_told(run: Path, dataset: Path) -> None:
    bars = [{"figure": "stage2.usual.psnr_db", "min": 1}, {"figure": "stage1.colour", "min": 2}]
    _, verdicts = opened(run, dataset, wanted=("stage2",), bars=bars).write()
    assert [v.bar.figure for v in verdicts] == ["stage2.usual.psnr_db"]
    assert "--part: chain, stage1, vae were left out, so they have no verdicts" in content(run)["notes"]
    _, verdicts = opened(run, dataset, bars=[*bars, {"figure": "vae.psnr_db", "min": 1}]).write()
    assert [v.passed for v in verdicts] == [True, False, False]
    assert verdicts[2].told == "missed: vae.psnr_db was not measured"


# ---- errors


def test_an_unfit_judge_leaves_no_evaluation(run: Path, tmp_path: Path) -> None:
    """The captions describe other clips."""
    colours = COLOURS[1:] + COLOURS[:1]

    def change(k: int, row: Row) -> Row:
        return {**row, "caption": f"a {(COLOURS, colours)[k % 2][k // 2 % 4]} thing"}

    data = synthetic.write_dataset(tmp_path / "data", 30, frames=5, width=16, height=16, change=change)
    (run / "evaluation" / "evaluation.html").write_text("a page")
    with pytest.raises(
        JudgeUnfit, match=r"judge unfit: on 5 real held-out clips the judge is right about colour 0\.\d+"
    ):
        opened(run, data).write()
    assert not (run / "evaluation" / "evaluation.json").exists()
    assert not (run / "evaluation" / "evaluation.html").exists()
    assert (run / "evaluation" / "parts" / "stage2.json").exists()


def test_the_clips_of_training_are_not_held_out(run: Path, dataset: Path) -> None:
    made = opened(run, dataset, dataset, clips=30)
    trained_on = real_clips.ids(str(dataset), made.config.data)
    with pytest.raises(
        ValueError, match=rf"--held-out .*: {len(trained_on)} of 30 clips are training clips of .* name a"
    ):
        made.write()


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (("stage3",), "--part stage3: the parts are vae, stage1, stage2, chain"),
        (
            ("stage1", "vae"),
            "--part vae needs weights of vae, but .* weights of stage1, stage2, and its codec is",
        ),
    ],
)
def test_parts_that_are_not_there(run: Path, dataset: Path, wanted: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        opened(run, dataset, wanted=wanted).write()
    assert (run / "evaluation" / "evaluation.json").exists()


def test_a_run_of_one_stage_has_its_parts(run: Path, dataset: Path) -> None:
    shutil.rmtree(run / "stage2")
    made = opened(run, dataset)
    assert made.parts == ("stage1",)
    assert (made.shape.height, made.shape.width) == (8, 8)
    with pytest.raises(
        ValueError, match=r"--part chain needs weights of stage1 and stage2, but .* of stage1"
    ):
        _ = opened(run, dataset, wanted=("chain",)).parts
    shutil.rmtree(run / "stage1" / "weights")
    with pytest.raises(ValueError, match=r"no stage has weights; reelmill train makes a run"):
        opened(run, dataset).write()
    with pytest.raises(ValueError, match=r"there is no such run folder"):
        opened(run / "else", dataset).write()


def test_a_stage2_alone_makes_no_videos_of_prompts(run: Path, dataset: Path) -> None:
    shutil.rmtree(run / "stage1")
    made = opened(run, dataset)
    assert made.parts == ("stage2",)
    made.check()
    with pytest.raises(ValueError, match=r"--vbench: .* has no weights of stage1, which makes the videos"):
        made.check(vbench=True)


def test_odd_sides_are_told_before_the_work(run: Path, dataset: Path) -> None:
    change_config(run, "stage1", "codec", spatial=5)
    change_config(run, "stage1", "transformer", patch=1)
    change_config(run, "stage1", "data", buckets=[{"frames": 5, "height": 15, "width": 20}])
    with pytest.raises(ValueError, match=r"stage1: videos of 20x15 \(data.buckets\) .* needs even sides"):
        opened(run, dataset).check()
    opened(run, dataset, wanted=("stage2",)).check()


def without_captions(k: int, row: Row) -> Row:
    return {**row, "caption": None}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, r"the held-out clips have no captions; give prompts with --prompts"),
        ({"attributes": {}}, r"the held-out clips have no captions; give prompts with --prompts"),
        ({"focus": "striped"}, r"focus: no caption of the 4 held-out clips has the word striped"),
    ],
)
def test_a_dataset_without_captions(
    run: Path, tmp_path: Path, counted: Counted, settings: dict[str, Any], says: str
) -> None:
    data = synthetic.write_dataset(
        tmp_path / "data", 30, frames=5, width=16, height=16, change=without_captions
    )
    with pytest.raises(ValueError, match=says):
        opened(run, data, **settings).write()
    assert counted.done == []


def test_words_that_no_caption_has(run: Path, dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"attributes.colour: none of 64 captions has purple as"):
        opened(run, dataset, attributes={"colour": [*COLOURS, "purple"]}).write()


def test_a_dataset_of_which_nothing_was_held_out(run: Path, dataset: Path) -> None:
    change_config(run, "stage1", "data", validation_fraction=0.0)
    with pytest.raises(ValueError, match=r"no clip is held out; .*--held-out.*data\.validation_fraction"):
        opened(run, dataset).write()


def test_captions_have_no_tag_where_sampling_has_one(run: Path, dataset: Path) -> None:
    change_config(run, "stage2", "data", motion_tag=True)
    assert all("motion, " in (caption or "") for caption in opened(run, dataset).truth.captions)
    change_config(run, "stage2", "sampling", prompt_prefix="medium motion, ")
    assert not any("motion, " in (caption or "") for caption in opened(run, dataset).truth.captions)


def test_the_version_is_a_part_of_the_key(
    run: Path, dataset: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_VERSION", parts._VERSION + 1)
    assert counted.of(opened(run, dataset)) == ["judge", *PARTS]
