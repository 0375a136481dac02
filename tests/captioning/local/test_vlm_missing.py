"""Missing models, files and packages: `transformers` reports them before the work and names a remedy."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from captioning.base import Caption, CaptionerMissing
from captioning.local.vlm import Transformers
from tests.captioning import tiny_vlm
from tests.captioning.tiny_vlm import mixed_clips, tiny_captioner

ROOT = Path(__file__).parents[3]


def _refusal(captioner: Transformers) -> str:
    with pytest.raises(CaptionerMissing) as caught:
        captioner.check()
    with pytest.raises(CaptionerMissing):
        captioner(mixed_clips(1))
    return str(caught.value)


def test_check_reads_few_files(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", never)
    tiny_captioner(llava).check()


def test_missing_files_of_a_folder_are_reported(llava: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert _refusal(tiny_captioner(tmp_path / "none")).startswith(
        f"captions.transformers.model: the folder {tmp_path}/none does not exist"
    )
    assert "has no config.json; name a folder as `hf download`" in _refusal(
        tiny_captioner(tmp_path / "empty")
    )
    bare = tiny_vlm.edited(llava, tmp_path / "bare", "config.json")
    (bare / "model.safetensors").unlink()
    assert "lacks weights" in _refusal(tiny_captioner(bare))
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002.x"}}
    (bare / "model.safetensors.index.json").write_text(json.dumps(index))
    (bare / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert "lacks 1 of 2 weight files, such as model-00002.x" in _refusal(tiny_captioner(bare))
    mute = tiny_vlm.edited(llava, tmp_path / "mute", "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mute / name).unlink()
    assert "lacks a tokenizer" in _refusal(tiny_captioner(mute))
    broken = tiny_vlm.edited(llava, tmp_path / "broken", "config.json")
    (broken / "config.json").write_text("{")
    assert "config.json is not the configuration of a model" in _refusal(tiny_captioner(broken))


def test_code_that_comes_with_a_model_is_never_run(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    auto = {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}}
    made = tiny_vlm.edited(llava, tmp_path / "m", "processor_config.json", **auto)
    (made / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    assert "comes with code of its own, which is never run" in _refusal(tiny_captioner(made))
    assert asked == []
    assert not (tmp_path / "ran").exists()


def test_other_kinds_of_models_are_refused(llava: Path, tmp_path: Path) -> None:
    said = _refusal(
        tiny_captioner(tiny_vlm.edited(llava, tmp_path / "m", "config.json", model_type="internvl_chat"))
    )
    assert "has the type internvl_chat, which transformers does not load" in said
    assert "ends in -hf" in said


def test_faults_outside_the_weights_are_reported_before_the_work(llava: Path, tmp_path: Path) -> None:
    blind = tiny_vlm.edited(llava, tmp_path / "blind", "config.json")
    (blind / "processor_config.json").unlink()
    assert _refusal(tiny_captioner(blind)) == (
        f"captions.transformers.model: {blind} lacks its processor (preprocessor_config.json, or "
        "processor_config.json); name a complete folder, as `hf download` or `save_pretrained` of the "
        "processor writes it"
    )
    base = tiny_vlm.edited(llava, tmp_path / "base", "config.json")
    (base / "chat_template.jinja").unlink()
    said = _refusal(tiny_captioner(base))
    assert "has no chat template (chat_template.jinja, " in said
    assert "name an instruction-tuned checkpoint" in said
    whole = (llava / "model.safetensors").read_bytes()
    for size in (0, 5, 200, len(whole) - 1000):
        cut = tiny_vlm.edited(llava, tmp_path / f"cut-{size}", "config.json")
        (cut / "model.safetensors").write_bytes(whole[:size])
        said = _refusal(tiny_captioner(cut))
        assert f"lacks a whole model.safetensors: its {size} bytes do not match its header" in said
        assert said.endswith("name a complete folder")
    (cut / "model.safetensors").rename(cut / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (cut / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks a whole model-00001-of-00001.safetensors" in _refusal(tiny_captioner(cut))


def test_faults_that_appear_only_during_loading(llava: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def said(folder: Path, **settings: Any) -> str:
        with pytest.raises(CaptionerMissing) as caught:
            tiny_captioner(folder, **settings)(mixed_clips(1))
        return str(caught.value)

    partial = tiny_vlm.edited(llava, tmp_path / "partial", "config.json")
    weights = load_file(partial / "model.safetensors")
    dropped = next(name for name in weights if "q_proj.weight" in name)
    save_file(
        {k: v for k, v in weights.items() if k != dropped}, partial / "model.safetensors", {"format": "pt"}
    )
    assert "lacks 1 of its weights, such as " in said(partial)
    if find_spec("flash_attn") is None:
        found = said(llava, attention="flash_attention_2")
        assert found.startswith("captions.transformers.attention: flash_attention_2 is not available")


def test_missing_packages_are_reported(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioning.local.vlm.find_spec", lambda name: None)
    with pytest.raises(CaptionerMissing, match=r"captions.transformers.attention: .*pip install flash-attn"):
        tiny_captioner(llava, attention="flash_attention_2").check()
    folder = tiny_vlm.edited(llava, tmp_path / "m", "config.json", model_type="smolvlm")
    with pytest.raises(CaptionerMissing, match=r"captions.transformers.model: .*pip install num2words"):
        tiny_captioner(folder).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "captions.transformers.frames: must be at least 1, not 0"),
        ({"side": 0}, "captions.transformers.side: must be at least 1, not 0"),
        ({"max_tokens": 0}, "captions.transformers.max_tokens: must be at least 1, not 0"),
        ({"batch_clips": -1}, "captions.transformers.batch_clips: must be at least 1, not -1"),
        ({"temperature": float("nan")}, "captions.transformers.temperature: must be at least 0, not nan"),
        ({"repetition_penalty": 0.0}, "captions.transformers.repetition_penalty: must be above 0"),
        ({"model": " "}, "captions.transformers.model: is empty"),
        ({"prompt": "detaild"}, "unknown prompt 'detaild'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformers(**settings)


_ASK = """
import json, sys
from captioning.local.vlm import Transformers
for name, revision, says in json.loads(sys.argv[1]):
    captioner = Transformers(**({"model": name} if name else {}), revision=revision, max_tokens=16)
    try:
        captioner.check()
        said = None
        if says:
            from tests.captioning import tiny_vlm
            said = captioner([tiny_vlm.clip("a", 1, (60, 80))])[0]
        print(json.dumps([captioner.key, said and said.text, said and said.revision]))
    except ValueError as error:
        print(json.dumps(type(error).__name__ + " " + str(error)))
"""
Question = tuple[str | None, str | None, bool]  # model, revision, whether to caption clips


def _ask(cache: Path, questions: list[Question], **environment: str) -> list[Any]:
    """Results of `check` and captioning in another process, because import reads the address of the hub."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK, json.dumps(questions)],
        env={**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_default_model_without_a_hub(tmp_path: Path) -> None:
    (said,) = _ask(tmp_path, [(None, None, False)], HF_HUB_OFFLINE="1")
    assert said.startswith(
        "CaptionerMissing captions.transformers.model: Qwen/Qwen2.5-VL-7B-Instruct is neither a folder nor in"
    )
    assert "unset HF_HUB_OFFLINE" in said
    assert "hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir FOLDER" in said
    assert "captions.transformers.model=FOLDER" in said


def test_an_unreachable_hub_is_reported_quickly_in_one_line(tmp_path: Path) -> None:
    code = (
        "from captioning.local.vlm import Transformers\n"
        "import time; began = time.monotonic()\n"
        "try: Transformers('org/model').check()\n"
        "except ValueError as error: print(error)\n"
        "print(time.monotonic() - began)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    said, seconds = done.stdout.splitlines()
    assert said.startswith("captions.transformers.model: org/model is neither a folder nor in the cache")
    assert "Connection refused" in said
    assert float(seconds) < 10


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(llava: Path) -> Iterator[str]:
    """A server that answers like the hub. org/good and org/half are LLaVA models."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            status, code, data = _hub_says(llava, self.path.lstrip("/"))
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _hub_says(folder: Path, path: str) -> tuple[int, str, bytes]:
    name, _, rest = path.removeprefix("api/models/").partition("/resolve/")
    revision, _, file = rest.partition("/")
    if name.startswith("org/gated"):
        return 403, "GatedRepo", b""
    if not name.startswith(("org/good", "org/half")):
        return 404, "RepoNotFound", b""
    if revision not in ("", "main", COMMIT):
        return 404, "RevisionNotFound", b""
    if not (folder / file).is_file():
        return 404, "EntryNotFound", b""
    return 200, "", (folder / file).read_bytes()


def test_hub(hub: str, llava: Path, tmp_path: Path) -> None:
    good, half, gated, unknown, revision, invalid = _ask(
        tmp_path,
        [
            ("org/good", None, True),
            ("org/half", None, False),
            ("org/gated", None, False),
            ("org/unknown", None, False),
            ("org/good", "v9", False),
            ("a b", None, False),
        ],
        HF_ENDPOINT=hub,
    )
    key, text, commit = good
    local = Transformers(model=str(llava), max_tokens=16)([tiny_vlm.clip("a", 1, (60, 80))])[0]
    assert isinstance(local, Caption)
    assert (text, commit) == (local.text, COMMIT)
    assert key == Transformers(model="org/good", max_tokens=16).key
    assert isinstance(half, list)  # the check downloaded everything except the weights and passed
    prefix = "CaptionerMissing captions.transformers."
    assert gated.startswith(f"{prefix}model: org/gated is gated; accept its terms on https://huggingface.co/")
    assert "hf auth login" in gated
    assert unknown.startswith(f"{prefix}model: org/unknown exists neither on the hub nor as a folder")
    assert revision == f"{prefix}revision: org/good has no revision v9; name a branch, tag or commit"
    assert invalid == f"{prefix}model: a b is neither a folder nor a hub name"
    # A downloaded model needs no connection. An incomplete model is reported before the work.
    again, half = _ask(tmp_path, [("org/good", None, True), ("org/half", None, False)], HF_HUB_OFFLINE="1")
    assert again == good
    assert half.startswith(f"{prefix}model: for org/half the cache lacks weights")
    assert "run `hf download org/half` with a connection" in half
