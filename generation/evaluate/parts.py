"""The evaluation of a run: its parts one after the other, each kept on disk, so that a stopped one goes on.

OUT/
  judge/            the judge's weights
  videos/           a preview and a final video of each prompt, as `sample` writes them
  parts/NAME.json   the figures of a part
  evaluation.json   all figures, the bars, and what they were made of
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from generation import run as runs
from generation.codecs.open import open_codec
from generation.config import Bucket, Config, Data, content_hash
from generation.config import Codec as CodecConfig
from generation.data.shards import read_index
from generation.device import free
from generation.disk import save_tensors, write_text
from generation.evaluate import following, judge, real_clips, restoring
from generation.evaluate.bars import Verdict, judge_bars
from generation.evaluate.codec import FIT_DB, FIT_DETAIL, evaluate_codec, in_focus, is_fit, void
from generation.evaluate.figures import Figures, Found, mean
from generation.evaluate.following import Made
from generation.evaluate.judge import Judge, JudgeNet, labels
from generation.evaluate.networks import ClipSimilarity, open_features
from generation.evaluate.real_clips import Clips
from generation.evaluate.settings import Settings
from generation.evaluate.vbench import export_vbench
from generation.sample.enhance import enhance_previews
from generation.sample.options import Options, Step, silent
from generation.sample.preview_folder import OtherPreview
from generation.sample.previews import sample_previews
from generation.sample.trained import open_trained

PARTS = ("vae", "stage1", "stage2", "chain")
_STAGES = {"vae": ("vae",), "stage1": ("stage1",), "stage2": ("stage2",), "chain": ("stage1", "stage2")}
_VERSION = 5  # of the figures: bump it when the same run gives others


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, of what, and where it goes.

    data: the dataset that the run was trained on; held_out: one of other clips, None: those that training
    held out; prompts: None: captions of held-out clips.
    """

    run: Path
    data: str
    held_out: str | None
    out: Path
    settings: Settings
    wanted: tuple[str, ...]  # parts; none: all that the run has
    prompts: Sequence[str] | None
    device: torch.device
    say: Callable[[str], None]
    on_step: Step = silent

    # ---- what there is

    def check(self, vbench: bool = False) -> None:
        """Raises `ValueError` for what the run does not have, before any work is done.

        vbench: its videos are wanted.
        """
        makes_videos = vbench or not {"stage1", "chain"}.isdisjoint(self.parts)
        if vbench and "stage1" not in self.stages:
            raise ValueError(f"--vbench: {self.run} has no weights of stage1, which makes videos of prompts")
        for stage in _STAGES["chain"] if makes_videos else ():
            if stage in self.stages:
                _, height, width = _shape(runs.read_config(self.run, stage))
                if height % 2 or width % 2:
                    raise ValueError(
                        f"{self.run / stage}: its videos, {width}x{height} (data.buckets), cannot be written "
                        "as H.264, which needs even sides; train it with such, or take --part vae or stage2"
                    )

    @cached_property
    def stages(self) -> list[str]:
        return [stage for stage in runs.STAGES if (self.run / stage / "weights" / "weights.json").is_file()]

    @cached_property
    def config(self) -> Config:
        """Of the last stage, which makes the videos that the run is for."""
        if not self.stages:
            what = "no stage of it has weights" if self.run.is_dir() else "there is no such run folder"
            raise ValueError(f"{self.run}: {what}; reelmill train makes them")
        return runs.read_config(self.run, self.stages[-1])

    @cached_property
    def shape(self) -> Bucket:
        frames, height, width = _shape(self.config)
        return Bucket(frames=frames, height=height, width=width)

    @cached_property
    def codec(self) -> CodecConfig | None:
        """The autoencoder: the run's own `vae`, or that of its last stage; None for the lossless one."""
        used, own = self.config.codec, self.run / "vae"
        if "vae" not in self.stages:
            return None if used.kind == "patch" else used
        if used.kind == "slice" and used.model and Path(used.model).expanduser() == own:
            return used  # it may have tiles
        sizes = runs.read_config(self.run, "vae").vae
        return CodecConfig(kind="slice", model=str(own), temporal=sizes.temporal, spatial=sizes.spatial)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Those wanted. Raises `ValueError` for one that the run does not have what it takes for."""
        there = {part: set(_STAGES[part]) <= set(self.stages) for part in PARTS}
        there["vae"] = self.codec is not None
        for part in self.wanted:
            if part not in there:
                raise ValueError(f"--part {part}: there are {', '.join(PARTS)}")
            if not there[part]:
                lossless = ", whose codec is the lossless one" if part == "vae" else ""
                raise ValueError(
                    f"--part {part}: it takes weights of {' and '.join(_STAGES[part])}, and {self.run} has "
                    f"those of {', '.join(self.stages)}{lossless}"
                )
        return tuple(part for part in PARTS if (part in self.wanted if self.wanted else there[part]))

    # ---- real clips, and who judges

    @cached_property
    def _unseen(self) -> Data:
        """Holds out the clips that no stage was trained on: all hold out the first in one order, some more of
        them than others. Captions get no motion tag where sampling has one for every prompt."""
        configs = [runs.read_config(self.run, stage) for stage in self.stages]
        phases = [config.phase(k)[1] for config in configs for k in range(max(1, len(config.phases)))]
        data = self.config.data
        changes = {
            "validation_fraction": min(phase.validation_fraction for phase in phases),
            "motion_tag": data.motion_tag and not any(config.sampling.prompt_prefix for config in configs),
        }
        return data.model_copy(update=changes)

    @cached_property
    def truth(self) -> Clips:
        self.say("reading held-out clips")
        which: real_clips.Which = "all" if self.held_out else "held out"
        count = max(self.settings.clips, self.settings.prompts)
        found = real_clips.load(
            self.held_out or self.data, self._unseen, self.shape, which=which, limit=count
        )
        if self.held_out:
            configs = [runs.read_config(self.run, stage) for stage in self.stages]
            real_clips.check_apart(self.data, [config.data for config in configs], self.held_out, found.ids)
        return found

    @cached_property
    def few(self) -> Clips:
        """As many of them as the autoencoder and Stage II are tried on."""
        count = self.settings.clips
        return Clips(self.truth.video[:count], self.truth.captions[:count], self.truth.ids[:count])

    @cached_property
    def trained_on(self) -> Clips:
        """Pieces of clips that were trained on: many, where a judge learns of them."""
        settings = self.settings
        count = max(settings.clips, settings.prompts)
        if settings.attributes:
            count = max(count, settings.judge_clips)
        self.say(f"reading {count} pieces of clips that were trained on")
        return real_clips.load(
            self.data, self.config.data, self.shape, which="trained on", limit=count, seed=settings.seed
        )

    @cached_property
    def captions(self) -> list[str]:
        """Of all clips that Stage I was trained on."""
        return real_clips.captions(self.data, runs.read_config(self.run, "stage1").data, "trained on")

    @cached_property
    def judge(self) -> Judge | None:
        """Trained once for the same clips and settings, and kept. None without attributes."""
        settings = self.settings
        if not settings.attributes:
            return None
        key = content_hash(
            [_VERSION, self._clips_key, settings.judge_clips, settings.judge_steps, settings.attributes]
        )
        path, about = self.out / "judge" / "judge.safetensors", self.out / "judge" / "judge.json"
        side = min(self.shape.height, self.shape.width)
        kept = _read(about)
        if kept.get("key") == key and path.is_file():
            net = JudgeNet(settings.attributes, side).to(self.device).eval()
            net.load_state_dict(load_file(path))
            return Judge(net, settings.attributes, side, kept["accuracy"])
        self.say(f"training the judge: {settings.judge_steps} steps")
        clips, truth = self.trained_on, self.truth
        found = judge.train(
            clips.video,
            labels(clips.captions, settings.attributes),
            settings.attributes,
            (truth.video, labels(truth.captions, settings.attributes)),
            settings.judge_steps,
            settings.seed,
            self.device,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        about.unlink(missing_ok=True)
        save_tensors({k: v.contiguous() for k, v in found.net.state_dict().items()}, path)
        write_text(about, json.dumps({"key": key, "accuracy": dict(found.accuracy)}, indent=1))
        return found

    @cached_property
    def _clips_key(self) -> str:
        """Of everything that decides which clips are looked at, and how."""
        datasets = [read_index(place).dataset_hash for place in (self.data, self.held_out) if place]
        data = [
            found.model_dump(mode="json", exclude={"workers", "max_bad_fraction"})
            for found in (self.config.data, self._unseen)
        ]
        sizes = self.settings.model_dump(include={"clips", "prompts", "seed"})
        return content_hash([datasets, data, self.shape.model_dump(), sizes])

    # ---- prompts and their videos

    @cached_property
    def texts(self) -> list[str]:
        if self.prompts is not None:
            return list(self.prompts)
        found = [c for c in self.truth.captions if c][: self.settings.prompts]
        if not found:
            raise ValueError(
                f"{self.held_out or self.data}: its held-out clips have no captions; name "
                "prompts with --prompts"
            )
        return found

    @cached_property
    def made(self) -> Made:
        return following.read_made(self.texts, self._folders, "chain" in self.parts)

    @cached_property
    def _folders(self) -> list[Path]:
        """Of the videos, sampled now where they are not there yet."""
        place, options = self.out / "videos", Options(seed=self.settings.seed)
        self.say(f"sampling {len(self.texts)} prompts")
        try:
            folders = sample_previews(self.run, self.texts, place, options, self.device, self.on_step)
        except OtherPreview as error:
            raise ValueError(
                f"{place} holds videos of another evaluation ({error.what} differ); remove that folder, or "
                "name another place with --out"
            ) from error
        if "chain" in self.parts:
            enhance_previews(self.run, folders, Options(), self.device, self.on_step)
        return folders

    def export_vbench(self, out: Path) -> Path:
        """The final videos, or without Stage II the previews, as VBench's own tool reads them."""
        name = "final.mp4" if "chain" in self.parts else "preview.mp4"
        return export_vbench(out, [folder / name for folder in self._folders], self.texts)

    # ---- parts

    def vae(self) -> Found:
        assert self.codec is not None
        found = evaluate_codec(open_codec(self.codec, self.device), self.few, self.settings)
        found.figures["fit"] = is_fit(found.figures)
        return found

    def stage1(self) -> Found:
        made = self.made  # before another network is there
        fresh: Tensor | None = None
        if self.judge and self.settings.untrained:
            trained = open_trained(self.run, "stage1", self.device)
            few = self.texts[: self.settings.untrained]
            fresh = following.sample_untrained(trained, few, Options().shape(trained.config), self.say)
        found = following.evaluate_stage1(made, self.trained_on, self.captions, self.judge, fresh)
        return self._with_clip(found, made.previews)

    def _with_clip(self, found: Found, videos: Tensor) -> Found:
        """How well videos fit their prompts, and other ones, by a model that has seen many."""
        if self.settings.clip:
            similarity = ClipSimilarity(self.settings.clip.model, self.settings.clip.pretrained, self.device)
            found.figures["clip_similarity"] = mean(similarity(videos, self.texts))
            others = following.shuffled(self.texts)
            if others != self.texts:
                of_others = mean(similarity(videos, others))
                found.figures["clip_similarity_shuffled_prompts"] = of_others
        return found

    def stage2(self) -> Found:
        trained = open_trained(self.run, "stage2", self.device)
        found = restoring.evaluate_stage2(trained, self.few, self.settings, self.judge, self.say)
        if trained.config.codec.kind != "patch":
            settings = self.settings.model_copy(update={"lpips": None})
            of = evaluate_codec(trained.codec, self.few, settings).figures
            found.figures["vae_fit"] = is_fit(of)
            if not found.figures["vae_fit"]:
                of_focus = f" of clips with {self.settings.focus}" if self.settings.focus else ""
                found.notes.append(
                    f"stage2: VAE unfit: what it gives back{of_focus} is {of['gain_db']:.1f} dB above "
                    f"bicubic, with {of['detail']:.2f} of the detail, where {FIT_DB:g} dB and "
                    f"{FIT_DETAIL:g} are needed; decibels, similarities and latent errors in its "
                    "latents claim nothing"
                )
        return found

    def chain(self) -> Found:
        name, weights = self.settings.extractor, self.settings.extractor_weights
        features = open_features(name, weights, self.device) if name else None
        found = following.evaluate_chain(
            self.made, self.truth, self.trained_on, self.captions, self.judge, features
        )
        assert self.made.finals is not None
        return self._with_clip(found, self.made.finals)

    # ---- all of it

    def figures(self) -> tuple[Figures, list[str]]:
        """Figures by part, and notes. Raises `JudgeUnfit`; `ValueError` for what is not there."""
        all_figures: Figures = {}
        notes: list[str] = []
        # What can be wrong with captions, before hours of work.
        if not {"vae", "stage2"}.isdisjoint(self.parts):
            in_focus(self.few.captions, self.settings)
        if not {"stage1", "chain"}.isdisjoint(self.parts):
            assert self.texts
        if self.parts != ("vae",) and self.judge:
            all_figures["judge"] = following.examine(self.judge, self.truth)
        for part in self.parts:
            found = self._kept(part)
            all_figures[part] = found.figures
            notes += found.notes
        return all_figures, notes

    def _kept(self, part: str) -> Found:
        """A part's figures from disk, if they were made of the same; else now."""
        path = self.out / "parts" / f"{part}.json"
        settings = self.settings.model_dump(mode="json", exclude={"bars"})
        made_of = [_VERSION, part, self._models(part), self._clips_key, settings, self._files, self.prompts]
        key = content_hash(made_of)
        kept = _read(path)
        if kept.get("key") == key:
            return Found(kept["figures"], kept["notes"])
        self.say(f"evaluating {part}")
        found: Found = getattr(self, part)()
        if self.device.type == "cuda":
            free(self.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": key, "figures": found.figures, "notes": found.notes}, indent=1))
        return found

    def _models(self, part: str) -> list[Any]:
        """What stands for a part's networks, and for how videos are made with them."""
        if part == "vae":
            assert self.codec is not None
            return [open_codec(self.codec, self.device).hash, self.device.type]
        found: list[Any] = [self.device.type]
        for stage in _STAGES[part]:
            trained = open_trained(self.run, stage, self.device)
            config = trained.config.model_dump(mode="json", exclude={"train", "preset"})
            found.append([trained.hash, trained.codec.hash, trained.text.hash, trained.precision, config])
        return found

    @property
    def _files(self) -> list[Any]:
        """What tells whether files that the settings name are the same as before."""
        clip = self.settings.clip
        names = [self.settings.extractor_weights, *([clip.model, clip.pretrained] if clip else [])]
        paths = [Path(name.removeprefix("local-dir:")).expanduser() for name in names if name]
        return [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.exists()]

    def write(self) -> tuple[dict[str, Any], list[Verdict]]:
        """Evaluate, and write OUT/evaluation.json. Returns its content, and the bars' verdicts."""
        self.check()
        path = self.out / "evaluation.json"
        for stale in (path, path.with_suffix(".html")):  # they would tell of others, were these not to be had
            stale.unlink(missing_ok=True)
        figures, notes = self.figures()
        left_out = set(PARTS) - set(self.parts) if self.wanted else set()
        bars = [bar for bar in self.settings.bars if bar.figure.partition(".")[0] not in left_out]
        if len(bars) < len(self.settings.bars):
            notes.append(f"--part: no verdicts on {', '.join(sorted(left_out))}, which were not wanted")
        verdicts = judge_bars(figures, bars, lambda path: void(figures, path))
        content = {
            "run": str(self.run),
            "data": self.data,
            "held_out": self.held_out,
            "settings": self.settings.model_dump(mode="json"),
            "figures": figures,
            "notes": notes,
            "bars": [{"passed": v.passed, "told": v.told} for v in verdicts],
        }
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=1))
        return content, verdicts


def _shape(config: Config) -> tuple[int, int, int]:
    """Frames, height and width of its first videos."""
    first = next((b for b in config.data.buckets if b.frames > 1), config.data.buckets[0])
    return first.frames, first.height, first.width


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
