"""The jars of Apache Kafka: downloaded once, checked against pinned hashes, kept in the user's cache.

The list beside this file names every jar, so nothing is resolved here: what the newest of something is has no say.
"""

import csv
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from gpu_telemetry.local.process import StartFailed

KAFKA_VERSION: Final = "4.3.1"
_PINNED: Final = Path(__file__).with_suffix(".csv")
_DOWNLOADS_AT_ONCE: Final = 4
_TIMEOUT_SECONDS: Final = 60
# Between attempts at one jar: of nearly a hundred downloads one in a while meets a connection that breaks.
_PAUSES_SECONDS: Final = (0.5, 2.0, 5.0)


def default_cache() -> Path:
    """Where downloads are kept: GPU_TELEMETRY_CACHE, else `gpu-telemetry` in the user's cache directory."""
    chosen = os.environ.get("GPU_TELEMETRY_CACHE")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "gpu-telemetry"


def cached(cache: Path | None = None) -> bool:
    """Whether the jars are there, so that nothing need be downloaded."""
    return _folder(cache or default_cache()).is_dir()


def jars(cache: Path | None = None) -> list[Path]:
    """The jars of the class path, in order; downloaded if they are not in the cache yet.

    Raises:
        StartFailed: one could not be had, or is not the one that was pinned.
    """
    cache = cache or default_cache()
    folder = _folder(cache)
    pinned = _pinned()
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():  # unless another process was faster
                _download(cache, folder, pinned)
    return [folder / _file_name(coordinate) for coordinate in pinned]


def _folder(cache: Path) -> Path:
    return cache / f"kafka-{KAFKA_VERSION}"


def _pinned() -> dict[str, str]:
    """The SHA-256 of each jar by its coordinate `group:artifact:version`."""
    with _PINNED.open(newline="") as file:
        return {row["coordinate"]: row["sha256"] for row in csv.DictReader(file)}


def _file_name(coordinate: str) -> str:
    _, artifact, version = coordinate.split(":")
    return f"{artifact}-{version}.jar"


def _download(cache: Path, folder: Path, pinned: dict[str, str]) -> None:
    partial, workspace = folder.with_suffix(".partial"), cache / "downloads"
    for leftover in (partial, workspace):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        for coordinate, jar in zip(pinned, pool.map(_downloader(workspace), pinned), strict=True):
            found = hashlib.sha256(jar.read_bytes()).hexdigest()
            if found != pinned[coordinate]:
                raise StartFailed(
                    f"Kafka's jar {coordinate} is not the pinned one: expected SHA-256 {pinned[coordinate]}, "
                    f"got {found}; --kafka HOST:PORT does without the local Kafka"
                )
            jar.rename(partial / _file_name(coordinate))
    partial.rename(folder)
    shutil.rmtree(workspace, ignore_errors=True)


def _downloader(workspace: Path) -> Callable[[str], Path]:
    """What downloads one jar by its coordinate into the workspace."""
    try:
        from jgo.maven import MavenContext  # noqa: PLC0415 - slow to import, and needed only for the first download
    except ImportError:
        raise StartFailed(
            "the package jgo, which downloads Kafka's jars, is not installed (requirements/local.txt has it); "
            "--kafka HOST:PORT does without it"
        ) from None
    context = MavenContext(repo_cache=workspace, timeout=_TIMEOUT_SECONDS)

    def download(coordinate: str) -> Path:
        group, artifact, version = coordinate.split(":")
        jar = context.project(group, artifact).at_version(version).artifact()
        for pause in (*_PAUSES_SECONDS, None):
            try:
                return Path(jar.resolve())
            except Exception as error:
                # Whatever the HTTP client raises: for us each means that the download did not succeed.
                if pause is None:
                    raise StartFailed(
                        f"Apache Kafka {KAFKA_VERSION} could not be downloaded: "
                        f"{coordinate}: {type(error).__name__}: {error}\n"
                        "--kafka HOST:PORT uses a broker that is already there and needs no download"
                    ) from error
            if jar.cached_path is not None:
                jar.cached_path.unlink(missing_ok=True)  # what came before the connection broke
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    return download
