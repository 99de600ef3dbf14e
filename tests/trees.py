"""Trees of folders that agents might make."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["nested"]


@contextlib.contextmanager
def nested(top: Path, depth: int, name: str = "d") -> Iterator[int]:
    """Folders in each other, deeper than a path can be long. Yields a descriptor of the deepest."""
    folder = os.open(top, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=folder)
            below = os.open(name, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)
