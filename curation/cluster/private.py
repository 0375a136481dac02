"""Protects a local Ray. This module does not import Ray, which reads the environment when it is imported."""

from __future__ import annotations

import os
import secrets
import sys

from curation.config.schema import Config


def private_ray(config: Config) -> None:
    """Protect a local Ray with a random token for this run. It listens on the loopback interface alone.

    A cluster with an address has its own protection. Ray reads the token when it is imported.
    """
    own = config.run.ray_address is None and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys()
    if own and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Where a machine may be no part of a cluster (Ray's default on macOS), its address is 127.0.0.1.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
