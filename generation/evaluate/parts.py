"""The evaluation of a run, part by part. Each part is kept on disk, so a stopped evaluation can resume.

OUT/
  judge/            the judge's weights
  videos/           a preview and a final video of each prompt, as `reelmill sample` writes them
  parts/NAME.json   the figures of a part
  evaluation.json   all figures, the verdicts on bars, and the settings
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
_VERSION = 5  # of the figures: raise it when the same run gives other figures


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run, with its inputs and its output folder.

    data: the dataset of the training. held_out: a dataset of other clips; None means the clips that training
    held out. prompts: None means captions of held-out clips.
    """

    run: Path
    data: str
    held_out: str | None
    out: Path
    settings: Settings
    wanted: tuple[str, ...]  # parts; empty: all parts that the run has
    prompts: Sequence[str] | None
    device: torch.device
    say: Callable[[str], None]
    on_step: Step = silent

    # ---- the stages of the run

    def check(self, vbench: bool = False) -> None:
        """Raises `ValueError`, before any work, when the run cannot be evaluated like this.

        vbench: whether videos for VBench are wanted.
        """
        makes_videos = vbench or not {"stage1", "chain"}.isdisjoint(self.parts)
        if vbench and "stage1" not in self.stages:
            raise ValueError(f"--vbench: {self.run} has no weights of stage1, which makes the videos")
        for stage in _STAGES["chain"] if makes_videos else ():
            if stage in self.stages:
                _, height, width = _shape(runs.read_config(self.run, stage))
                if height % 2 or width % 2:
                    raise ValueError(
                        f"{self.run / stage}: videos of {width}x{height} (data.buckets) cannot be written as "
                        "H.264, which needs even sides; train with even sides, or take --part vae or stage2"
                    )

    @cached_property
    def stages(self) -> list[str]:
        """The stages of the run that have weights."""
        return [stage for stage in runs.STAGES if (self.run / stage / "weights" / "weights.json").is_file()]

    @cached_property
    def config(self) -> Config:
        """The configuration of the last stage. Raises `ValueError` when no stage has weights."""
        if not self.stages:
            what = "no stage has weights" if self.run.is_dir() else "there is no such run folder"
            raise ValueError(f"{self.run}: {what}; reelmill train makes a run")
        return runs.read_config(self.run, self.stages[-1])

    @cached_property
    def shape(self) -> Bucket:
        """Frames and size of the videos that the last stage makes."""
        frames, height, width = _shape(self.config)
        return Bucket(frames=frames, height=height, width=width)

    @cached_property
    def codec(self) -> CodecConfig | None:
        """The autoencoder: the run's `vae`, or the codec of its last stage. None: it is lossless."""
        used, own = self.config.codec, self.run / "vae"
        if "vae" not in self.stages:
            return None if used.kind == "patch" else used
        if used.kind == "slice" and used.model and Path(used.model).expanduser() == own:
            return used  # these settings may have tiles
        sizes = runs.read_config(self.run, "vae").vae
        return CodecConfig(kind="slice", model=str(own), temporal=sizes.temporal, spatial=sizes.spatial)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts to evaluate. Raises `ValueError` for a part that this run cannot have."""
        there = {part: set(_STAGES[part]) <= set(self.stages) for part in PARTS}
        there["vae"] = self.codec is not None
        for part in self.wanted:
            if part not in there:
                raise ValueError(f"--part {part}: the parts are {', '.join(PARTS)}")
            if not there[part]:
                lossless = ", and its codec is lossless" if part == "vae" else ""
                raise ValueError(
                    f"--part {part} needs weights of {' and '.join(_STAGES[part])}, but {self.run} has "
                    f"weights of {', '.join(self.stages)}{lossless}"
                )
        return tuple(part for part in PARTS if (part in self.wanted if self.wanted else there[part]))

    # ---- real clips, and the judge

    @cached_property
    def _unseen(self) -> Data:
        """The data settings for clips that no stage was trained on.

        All stages hold out the first clips of the same order, so the smallest fraction is used. Captions get
        no motion tag if sampling puts a prefix before every prompt.
        """
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
        """Held-out clips. Raises `ValueError` when some of them are training clips."""
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
        """The held-out clips for the autoencoder and Stage II."""
        count = self.settings.clips
        return Clips(self.truth.video[:count], self.truth.captions[:count], self.truth.ids[:count])

    @cached_property
    def trained_on(self) -> Clips:
        """Pieces of training clips. There are many pieces if a judge is trained."""
        settings = self.settings
        count = max(settings.clips, settings.prompts)
        if settings.attributes:
            count = max(count, settings.judge_clips)
        self.say(f"reading {count} pieces of training clips")
        return real_clips.load(
            self.data, self.config.data, self.shape, which="trained on", limit=count, seed=settings.seed
        )

    @cached_property
    def captions(self) -> list[str]:
        """The captions of all clips that Stage I was trained on."""
        return real_clips.captions(self.data, runs.read_config(self.run, "stage1").data, "trained on")

    @cached_property
    def judge(self) -> Judge | None:
        """The judge. It is trained once for the same clips and settings. None without attributes."""
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
        """A hash of everything that decides which clips are used, and how they are read."""
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
        """The prompts of the videos. Raises `ValueError` when held-out clips have no captions."""
        if self.prompts is not None:
            return list(self.prompts)
        found = [c for c in self.truth.captions if c][: self.settings.prompts]
        if not found:
            raise ValueError(
                f"{self.held_out or self.data}: the held-out clips have no captions; give prompts "
                "with --prompts"
            )
        return found

    @cached_property
    def made(self) -> Made:
        """The videos of the prompts."""
        return following.read_made(self.texts, self._folders, "chain" in self.parts)

    @cached_property
    def _folders(self) -> list[Path]:
        """The folders of the videos. Missing videos are sampled now."""
        place, options = self.out / "videos", Options(seed=self.settings.seed)
        self.say(f"sampling {len(self.texts)} prompts")
        try:
            folders = sample_previews(self.run, self.texts, place, options, self.device, self.on_step)
        except OtherPreview as error:
            raise ValueError(
                f"{place} holds videos of another evaluation (other values of {error.what}); remove that "
                "folder, or take another --out"
            ) from error
        if "chain" in self.parts:
            enhance_previews(self.run, folders, Options(), self.device, self.on_step)
        return folders

    def export_vbench(self, out: Path) -> Path:
        """Copy the final videos, or the previews without Stage II, for VBench's own tool. Returns `out`."""
        name = "final.mp4" if "chain" in self.parts else "preview.mp4"
        return export_vbench(out, [folder / name for folder in self._folders], self.texts)

    # ---- parts

    def vae(self) -> Found:
        """How well the autoencoder reconstructs held-out clips."""
        assert self.codec is not None
        found = evaluate_codec(open_codec(self.codec, self.device), self.few, self.settings)
        found.figures["fit"] = is_fit(found.figures)
        return found

    def stage1(self) -> Found:
        """How well previews follow their prompts."""
        made = self.made  # these networks are released before another network is loaded
        fresh: Tensor | None = None
        if self.judge and self.settings.untrained:
            trained = open_trained(self.run, "stage1", self.device)
            few = self.texts[: self.settings.untrained]
            fresh = following.sample_untrained(trained, few, Options().shape(trained.config), self.say)
        found = following.evaluate_stage1(made, self.trained_on, self.captions, self.judge, fresh)
        return self._with_clip(found, made.previews)

    def _with_clip(self, found: Found, videos: Tensor) -> Found:
        """Add how well videos fit their prompts, and other prompts, by CLIP."""
        if self.settings.clip:
            similarity = ClipSimilarity(self.settings.clip.model, self.settings.clip.pretrained, self.device)
            found.figures["clip_similarity"] = mean(similarity(videos, self.texts))
            others = following.shuffled(self.texts)
            if others != self.texts:
                of_others = mean(similarity(videos, others))
                found.figures["clip_similarity_shuffled_prompts"] = of_others
        return found

    def stage2(self) -> Found:
        """How well Stage II restores degraded clips."""
        trained = open_trained(self.run, "stage2", self.device)
        found = restoring.evaluate_stage2(trained, self.few, self.settings, self.judge, self.say)
        if trained.config.codec.kind != "patch":
            settings = self.settings.model_copy(update={"lpips": None})
            of = evaluate_codec(trained.codec, self.few, settings).figures
            found.figures["vae_fit"] = is_fit(of)
            if not found.figures["vae_fit"]:
                of_focus = f" of clips with {self.settings.focus}" if self.settings.focus else ""
                found.notes.append(
                    f"stage2: VAE unfit: its reconstruction{of_focus} is {of['gain_db']:.1f} dB above "
                    f"bicubic, with {of['detail']:.2f} of the detail, but {FIT_DB:g} dB and "
                    f"{FIT_DETAIL:g} are needed; so figures in decibels, SSIM and latent errors of "
                    "stage2 do not count"
                )
        return found

    def chain(self) -> Found:
        """How well final videos follow their prompts, and how far they are from real clips."""
        name, weights = self.settings.extractor, self.settings.extractor_weights
        features = open_features(name, weights, self.device) if name else None
        found = following.evaluate_chain(
            self.made, self.truth, self.trained_on, self.captions, self.judge, features
        )
        assert self.made.finals is not None
        return self._with_clip(found, self.made.finals)

    # ---- the whole evaluation

    def figures(self) -> tuple[Figures, list[str]]:
        """Figures by part, and notes. Raises `JudgeUnfit`, and `ValueError` for missing inputs."""
        all_figures: Figures = {}
        notes: list[str] = []
        # Errors about captions come first, before hours of work.
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
        """A part's figures: from disk if models, clips and settings are the same, or else computed now."""
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
        """Hashes of a part's networks, and the settings of making videos."""
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
        """Sizes and times of the files that the settings name, to notice other files."""
        clip = self.settings.clip
        names = [self.settings.extractor_weights, *([clip.model, clip.pretrained] if clip else [])]
        paths = [Path(name.removeprefix("local-dir:")).expanduser() for name in names if name]
        return [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.exists()]

    def write(self) -> tuple[dict[str, Any], list[Verdict]]:
        """Evaluate, and write OUT/evaluation.json. Returns its content and the verdicts on bars."""
        self.check()
        path = self.out / "evaluation.json"
        for stale in (path, path.with_suffix(".html")):  # old results must not stay if this evaluation fails
            stale.unlink(missing_ok=True)
        figures, notes = self.figures()
        left_out = set(PARTS) - set(self.parts) if self.wanted else set()
        bars = [bar for bar in self.settings.bars if bar.figure.partition(".")[0] not in left_out]
        if len(bars) < len(self.settings.bars):
            notes.append(f"--part: {', '.join(sorted(left_out))} were left out, so they have no verdicts")
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
    """Frames, height and width of the first bucket of videos."""
    first = next((b for b in config.data.buckets if b.frames > 1), config.data.buckets[0])
    return first.frames, first.height, first.width


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
