"""The tested set of packages, its lock with hashes, and the bounds that exclude releases with known holes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
# The last release with a known hole.
HOLES = {
    "aiohttp": "3.14.3",
    "fsspec": "2026.4.0",  # `reference://` renders templates outside of a sandbox
    "gcsfs": "2026.4.0",  # of one release with fsspec
    "jinja2": "3.1.5",
    "pillow": "12.3.0",
    "s3fs": "2026.4.0",
}


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    return pins((ROOT / "constraints.txt").read_text())


@pytest.fixture(scope="module")
def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(r) for r in sum(project["optional-dependencies"].values(), project["dependencies"])]


def test_the_lock_has_the_constraints_with_hashes_and_nothing_else(constraints: dict[str, str]) -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert pins(text) == constraints, "run: make requirements.lock"
    comment, *packages = re.split(r"\n(?=\S)", text.rstrip())
    assert comment.startswith("# ")
    for package in packages:
        pin, *hashes = package.split(" \\\n    ")
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", pin), pin
        assert hashes, f"{pin} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), pin


def test_the_constraints_are_within_the_declared_bounds(
    constraints: dict[str, str], declared: list[Requirement]
) -> None:
    for requirement in declared:
        version = constraints[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, and {version} is tested"


@pytest.mark.parametrize("name", HOLES)
def test_releases_with_known_holes_are_excluded(name: str, declared: list[Requirement]) -> None:
    bounds = [r.specifier for r in declared if canonicalize_name(r.name) == name]
    assert bounds
    assert not any(bound.contains(Version(HOLES[name])) for bound in bounds)
