"""Ray clusters and an S3 server on this machine, for tests. Each node has its own folders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from s3fs import S3FileSystem

from tests.jobs import left_behind

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Node:
    """A node by `ray start`, with its own temporary folder and working folder."""

    def __init__(self, folder: Path, cpus: int, *how: str):
        self.folder = folder
        self.mark = uuid.uuid4().hex
        for name in ("tmp", "work"):
            (folder / name).mkdir(parents=True)
        command = [RAY, "start", *how, f"--num-cpus={cpus}", "--object-store-memory=200000000"]
        command += [f"--temp-dir={folder / 'ray'}", f"--dashboard-agent-listen-port={free_port()}"]
        subprocess.run(
            [*command, "--disable-usage-stats"],
            check=True,
            cwd=folder / "work",
            # Without a setting, `ray start` switches tokens on.
            env=left_behind.environment(self.mark, RAY_AUTH_MODE="token", TMPDIR=str(folder / "tmp")),
            capture_output=True,
            timeout=120,
        )

    @property
    def decodes(self) -> bool:
        """Whether a worker of reelmill works on this node."""
        lines = []
        for process in left_behind.processes(self.mark):
            with contextlib.suppress(psutil.Error):
                lines.append(" ".join(process.cmdline()))
        return any("curation.decode" in line for line in lines)

    def working_dir(self) -> set[str]:
        """The names at the top of the working directory that a job sent to this node."""
        found = self.folder.glob("ray/session_latest/runtime_resources/working_dir_files/_ray_pkg_*/*")
        return {path.name for path in found}

    def kill(self) -> None:
        """Kill all processes of the node at once, like the failure of a machine."""
        for process in left_behind.processes(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


class Cluster:
    """A context manager for a cluster with a head, where drivers run, and other nodes."""

    def __init__(self, nodes: int, cpus: int = 1):
        # Ray puts sockets into this folder, and their paths must be short.
        self.folder = Path("/tmp") / f"rm{uuid.uuid4().hex[:6]}"
        port, dashboard, client = free_port(), free_port(), free_port()
        self._cpus = cpus
        self._address = f"127.0.0.1:{port}"
        own = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
        self.environment = {
            **own,
            "RAY_AUTH_MODE": "token",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}"]
        self.nodes = [Node(self.folder / "0", cpus, *head, f"--ray-client-server-port={client}")]
        for _ in range(nodes - 1):
            self.join()

    def join(self) -> Node:
        node = Node(self.folder / str(len(self.nodes)), self._cpus, f"--address={self._address}")
        self.nodes.append(node)
        return node

    def submit(
        self, module: str, *arguments: str, working_dir: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Run `ray job submit … -- python -m jobs.MODULE` when the cluster takes jobs."""
        command = [RAY, "job", "submit", "--working-dir", "."]
        command += ["--runtime-env-json", json.dumps({"env_vars": dict(env)})] if env else []
        command += ["--", sys.executable, "-m", f"jobs.{module}", *arguments]
        left_behind.until(self._takes_jobs, 60)
        return subprocess.Popen(
            command,
            cwd=working_dir,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _takes_jobs(self) -> bool:
        """Wait for the agent of the head, which a new cluster starts after some seconds."""
        done = subprocess.run(
            [RAY, "job", "submit", "--", "true"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode == 0

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def checkout(folder: Path) -> Path:
    """A copy of the repository like a user's working directory, without environments and data."""
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis")
    return Path(shutil.copytree(ROOT, folder, ignore=left_out))


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server with an empty bucket `reelmill`. Yields the environment that makes `s3://` use it."""
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    with (folder / "s3.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
        )
    try:
        left_behind.until(lambda: _answers(port), 60)
        S3FileSystem.clear_instance_cache()  # otherwise fsspec returns an instance for an earlier server
        yield environment
    finally:
        S3FileSystem.clear_instance_cache()
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def wait(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """The output of a job. Raises `AssertionError` with the output if the job failed."""
    printed, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, printed[-5000:]
    return printed
