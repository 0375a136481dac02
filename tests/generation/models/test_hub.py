"""Models in folders and on the hub: found models, refused models, and the identity of a model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from generation.models import hub, pretrained
from generation.models.pretrained import TRANSFORMER, VAE
from generation.text.source import TEXT

WANTED = {"text": TEXT, "transformer": TRANSFORMER, "vae": VAE}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _config(kind: str) -> bytes:
    return json.dumps({"_class_name": WANTED[kind].class_name}).encode()


# The files of each model on the hub.
HUB = {
    "org/text": {"config.json": b'{"model_type": "t5"}'},
    "org/transformer": {"config.json": _config("transformer")},
    "org/pipeline": {
        "text_encoder/config.json": b'{"model_type": "t5"}',
        "transformer/config.json": _config("transformer"),
        "vae/config.json": _config("vae"),
    },
    "org/other": {"config.json": b'{"_class_name": "UNet2DModel"}'},
    "org/none": {"README.md": b""},
}


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers like the hub."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            name, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            status, code, data = 200, "", b""
            if name == "org/gated":
                status, code = 403, "GatedRepo"
            elif name not in HUB:
                status, code = 404, "RepoNotFound"
            elif revision not in ("main", COMMIT):
                status, code = 404, "RevisionNotFound"
            elif file not in HUB[name]:
                status, code = 404, "EntryNotFound"
            else:
                data = HUB[name][file]
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

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


_ASK = """
import json, sys
from generation.models import hub
from generation.config import Text
from generation.text.source import locate
from tests.generation.models.test_hub import WANTED
for kind, name, revision in json.loads(sys.argv[1]):
    try:
        if kind == "text":
            place, tokenizer = locate(Text(kind="t5", model=name, revision=revision))
            print(json.dumps([place.commit, place.part, tokenizer, place.identity(tokenizer)]))
        else:
            place = hub.find(WANTED[kind], name, revision)
            print(json.dumps([place.commit, place.part, place.identity()]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def _ask(cache: Path, models: list[tuple[str, str, str | None]], **environment: str) -> list[Any]:
    """Ask in a new process, because the library reads the hub's address when it is imported."""
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", **environment}
    done = subprocess.run(
        [sys.executable, "-c", _ASK, json.dumps(models)],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


FOUND = {
    ("text", "org/text", None): [COMMIT, "", "", COMMIT],
    ("text", "org/pipeline", "main"): [COMMIT, "text_encoder", "tokenizer", COMMIT],
    ("transformer", "org/transformer", None): [COMMIT, "", COMMIT],
    ("transformer", "org/pipeline", None): [COMMIT, "transformer", COMMIT],
    ("vae", "org/pipeline", COMMIT): [COMMIT, "vae", COMMIT],
}


def test_models_of_the_hub_are_found_and_known_by_their_commit(server: str, tmp_path: Path) -> None:
    assert _ask(tmp_path, list(FOUND), HF_ENDPOINT=server) == list(FOUND.values())
    # Models in the cache need no connection. Other models cannot be loaded.
    *found, other = _ask(tmp_path, [*FOUND, ("transformer", "org/unseen", None)], HF_HUB_OFFLINE="1")
    assert found == list(FOUND.values())
    assert other.startswith(
        "transformer.pretrained: there is no folder org/unseen, and the hub cannot be reached"
    )
    assert "hf download org/unseen --local-dir FOLDER" in other


def test_what_the_hub_does_not_give_is_named_with_a_remedy(server: str, tmp_path: Path) -> None:
    names = ("org/gated", "org/unknown", "unknown", "a b", "org/none", "org/other")
    asked: list[tuple[str, str, str | None]] = [(kind, name, None) for kind in WANTED for name in names]
    asked += [(kind, "org/pipeline", "v9") for kind in WANTED]
    said = dict(zip(asked, _ask(tmp_path, asked, HF_ENDPOINT=server), strict=True))
    for kind, wanted in WANTED.items():
        key = wanted.key
        gated, unknown, bare, invalid, none, other = (said[kind, name, None] for name in names)
        assert gated.startswith(f"{key}: org/gated is gated; accept its terms")
        assert "hf auth login" in gated
        assert f"{key}=FOLDER" in gated
        assert unknown.startswith(f"{key}: the hub has no org/unknown, and there is no such folder")
        assert bare.startswith(f"{key}: the hub has no unknown, and there is no such folder")
        assert wanted.example in bare
        assert invalid == f"{key}: a b is not a folder and not a hub name"
        assert none.startswith(f"{key}: org/none holds no ")
        revision = said[kind, "org/pipeline", "v9"]
        section = key.partition(".")[0]
        assert (
            revision
            == f"{section}.revision: org/pipeline has no revision v9; name a branch, a tag or a commit"
        )
        if wanted.class_name:
            assert other.startswith(f"{key}: org/other holds no {wanted.class_name}")


@pytest.mark.parametrize("kind", list(WANTED))
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(kind: str, tmp_path: Path) -> None:
    for source in (tmp_path / "none", "runs/mine/stage1", "./model", "~/no/such/model"):
        with pytest.raises(ValueError, match=rf"{WANTED[kind].key}: there is no folder .*; name one that"):
            hub.find(WANTED[kind], source)


# ---- the identity of a model


def _write(folder: Path, small: float = 0.0, large: float = 0.0) -> list[tuple[str, str]]:
    """A file of 8 MB. One small tensor lies between the evenly spread samples."""
    folder.mkdir(exist_ok=True)
    values = torch.arange(2 << 20, dtype=torch.float32).reshape(2, -1)
    tensors = {"a": values[0] + large, "b": torch.full((16,), small), "c": values[1].contiguous()}
    save_file(tensors, folder / pretrained.FILE)
    return hub.fingerprint(folder)


def test_equal_sizes_of_another_training_are_another_model(tmp_path: Path) -> None:
    first = _write(tmp_path)
    assert _write(tmp_path / "moved") == first
    assert [name for name, _ in first] == [pretrained.FILE]
    assert _write(tmp_path, small=1e-3) != first
    assert _write(tmp_path, large=1.0) != first
    (tmp_path / "config.json").write_text("{}")
    assert _write(tmp_path) != first
    (tmp_path / "config.json").unlink()
    (tmp_path / "notes.md").write_text("not of the model")
    assert _write(tmp_path) == first


@pytest.mark.parametrize("start", [b"", b"\xff" * 8, (4).to_bytes(8, "little") + b"null"])
def test_weights_that_do_not_say_where_tensors_are(tmp_path: Path, start: bytes) -> None:
    """Pickles and damaged files, which loading refuses later."""
    path = tmp_path / ("model.safetensors" if start else "pytorch_model.bin")
    path.write_bytes(start + bytes(2 << 20))
    first = hub.fingerprint(tmp_path)
    path.write_bytes(start + bytes(1 << 20) + b"\x01" * (1 << 20))
    assert hub.fingerprint(tmp_path) != first
