"""Write the same few pictures as tar files, and into the memory that fsspec calls a store."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar file of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def shards_of(folder: Path, size: int, labels: Mapping[str, str]) -> dict[str, bytes]:
    """Return WebDataset's tar files, each of so many of a folder's pictures, in order."""
    paths = sorted(folder.glob("*/*.png"))
    files = {}
    for start in range(0, len(paths), size):
        members = []
        for number, path in enumerate(paths[start : start + size], start):
            members.append((f"{number:06d}.png", path.read_bytes()))
            members.append((f"{number:06d}.cls", labels[path.parent.name].encode()))
        files[f"shard-{start // size:03d}.tar"] = tar_bytes(members)
    return files
