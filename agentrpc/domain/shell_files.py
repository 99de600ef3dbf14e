"""The files that a line of shell text opens, as far as redirections and the arguments of known programs say."""

from dataclasses import dataclass

from agentrpc.domain.shell import Script

__all__ = ["File", "Files", "files_of"]


@dataclass(frozen=True, slots=True)
class File:
    """A file or folder that is opened.

    Attributes:
        path: Absolute, or relative to where the shell starts; None when it is unknown (an expansion, or a `cd` before it).
        source: The word as it is written.
        glob: `path` holds shell wildcards, which names of files take the place of.
        redirect: The shell itself opens it, for a redirection.
        tree: Everything below it too (`rm -r`, `grep -r`).
    """

    path: str | None
    source: str
    glob: bool = False
    redirect: bool = False
    tree: bool = False


@dataclass(frozen=True, slots=True)
class Files:
    """What a line reads and writes.

    Attributes:
        reads: Files whose content is read.
        writes: Files that are made, changed, moved or removed.
        reads_more: It may read files that are not named here.
        writes_more: It may write files that are not named here.
    """

    reads: tuple[File, ...]
    writes: tuple[File, ...]
    reads_more: bool
    writes_more: bool


def files_of(script: Script) -> Files:
    """The files that a line opens."""
    return Files((), (), reads_more=True, writes_more=not script.certain)
