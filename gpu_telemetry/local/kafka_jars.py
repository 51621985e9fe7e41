"""The jars of Apache Kafka: resolved and downloaded once, checked against pinned hashes, kept in the user's cache."""

import csv
import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

from gpu_telemetry.local.process import StartFailed

KAFKA_VERSION: Final = "4.3.1"
# kafka-clients stands here by name because the resolver otherwise settles on the older one of a transitive dependency.
_COORDINATES: Final = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
)
_PINNED: Final = Path(__file__).with_suffix(".csv")


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
    return [folder / name for name in pinned]


def _folder(cache: Path) -> Path:
    return cache / f"kafka-{KAFKA_VERSION}"


def _pinned() -> dict[str, str]:
    with _PINNED.open(newline="") as file:
        return {row["jar"]: row["sha256"] for row in csv.DictReader(file)}


def _download(cache: Path, folder: Path, pinned: dict[str, str]) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    resolved = {jar.name: jar for jar in _resolve(cache / "jgo")}
    for name, expected in pinned.items():
        if name not in resolved:
            raise StartFailed(f"Kafka's jar {name} could not be had; --kafka HOST:PORT does without the local Kafka")
        found = hashlib.sha256(resolved[name].read_bytes()).hexdigest()
        if found != expected:
            raise StartFailed(
                f"Kafka's jar {name} is not the pinned one: expected SHA-256 {expected}, got {found} "
                f"({resolved[name]}); --kafka HOST:PORT does without the local Kafka"
            )
        shutil.copyfile(resolved[name], partial / name)
    partial.rename(folder)
    shutil.rmtree(cache / "jgo", ignore_errors=True)


def _resolve(workspace: Path) -> list[Path]:
    try:
        import jgo  # noqa: PLC0415 - slow to import, and needed only for the first download
    except ImportError:
        raise StartFailed(
            "the package jgo, which downloads Kafka's jars, is not installed (requirements/local.txt has it); "
            "--kafka HOST:PORT does without it"
        ) from None
    try:
        return list(jgo.build("+".join(_COORDINATES), cache_dir=workspace).all_jars)
    except Exception as error:
        # Whatever the resolver's HTTP client raises: for us each means that the download did not succeed.
        raise StartFailed(
            f"Apache Kafka {KAFKA_VERSION} could not be downloaded: {type(error).__name__}: {error}\n"
            "--kafka HOST:PORT uses a broker that is already there and needs no download"
        ) from error
