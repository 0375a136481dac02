"""Training and sampling run where Ray, OpenCV and scenedetect are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import generation

BLOCKED = ("ray", "cv2", "scenedetect", "curation", "filters", "captioning", "jobs")
SCRIPT = f"""
import importlib, pkgutil, sys
for name in {BLOCKED}:
    sys.modules[name] = None  # an import of this package, or of a module in it, now fails
import generation
names = [m.name for m in pkgutil.walk_packages(generation.__path__, "generation.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    root = Path(generation.__file__).parents[1]
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_every_module_imports_without_them() -> None:
    found = python(SCRIPT)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) >= 10


def test_a_blocked_import_would_be_seen() -> None:
    found = python(
        SCRIPT.replace("import generation\n", "import generation\nimport curation.config.schema\n")
    )
    assert found.returncode != 0
    assert "curation" in found.stderr


def test_decoding_processes_stay_light() -> None:
    """Decoding processes start fast, as they do not import torch."""
    found = python(
        "import sys, generation.data.decode, av, decord; "
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    assert found.stdout.split() == ["False", "False"], found.stderr
