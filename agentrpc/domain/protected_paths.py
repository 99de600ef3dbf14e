"""Names that are never written without a question: what is written there decides what programs do later on.

A repository's `.git`, the files that shells read when they start, and the settings of programs that run others are
neither written by a mode that accepts edits, nor under a rule that happens to cover them: only a rule that names the
very file, such as `Edit(/.mcp.json)`, allows it. The list is Claude Code's own with a few names more.
"""

import re
import unicodedata
from fnmatch import fnmatchcase

__all__ = ["may_be_protected", "protected_name"]

_FOLDERS = frozenset(
    {
        ".cargo",
        ".claude",
        ".devcontainer",
        ".git",
        ".githooks",
        ".hg",
        ".husky",
        ".idea",
        ".mvn",
        ".svn",
        ".vscode",
        ".yarn",
    }
)
_FILES = frozenset(
    {
        ".bash_aliases",
        ".bash_login",
        ".bash_logout",
        ".bash_profile",
        ".bashrc",
        ".bazelrc",
        ".claude.json",
        ".condarc",
        ".curlrc",
        ".envrc",
        ".gitattributes",
        ".gitconfig",
        ".gitmodules",
        ".inputrc",
        ".kshrc",
        ".lessfilter",
        ".lesskey",
        ".mcp.json",
        ".mise.toml",
        ".npmrc",
        ".pam_environment",
        ".pdbrc",
        ".pnp.cjs",
        ".pnp.loader.mjs",
        ".pnpmfile.cjs",
        ".pre-commit-config.yaml",
        ".profile",
        ".pypirc",
        ".pythonrc",
        ".ripgreprc",
        ".tool-versions",
        ".vimrc",
        ".wgetrc",
        ".xprofile",
        ".xsession",
        ".xsessionrc",
        ".yarnrc",
        ".yarnrc.yml",
        ".zlogin",
        ".zlogout",
        ".zprofile",
        ".zshenv",
        ".zshrc",
    }
)
# Names within folders whose other contents are nobody's settings.
_PAIRS = frozenset(
    {(".config", "fish"), (".config", "git"), (".ssh", "rc"), (".ssh", "environment"), (".ssh", "config")}
)
_WILD = re.compile(r"[*?\[]")
# Where wildcards stand, a folder with settings in it is not told from those.
_WHOLE = _FOLDERS | _FILES | {folder for folder, _ in _PAIRS}
# What a folder of git holds that has another name: of a bare repository, of a worktree, of a submodule.
_GIT_FOLDER = re.compile(r".+\.git")
_GIT_INSIDE = frozenset({"config", "config.worktree", "hooks", "info"})


def protected_name(path: str) -> str | None:
    """The name in an absolute path that is never written without a question; None when there is none."""
    names = path.split("/")
    plain = [_plain(name) for name in names]
    if names[-1] == "HEAD":
        # With it a folder becomes a repository, whose `config` then says what `git status` runs.
        return names[-1]
    for index, name in enumerate(plain):
        last = index == len(plain) - 1
        if name in _FOLDERS or name in _FILES or (not last and (name, plain[index + 1]) in _PAIRS):
            return names[index] if (last or name in _FOLDERS or name in _FILES) else "/".join(names[index : index + 2])
        if not last and _GIT_FOLDER.fullmatch(name) and plain[index + 1] in _GIT_INSIDE:
            return "/".join(names[index : index + 2])
    return None


def may_be_protected(pattern: str) -> str | None:
    """The part of a path with shell wildcards that may stand for a protected name; None when none may.

    A name that begins with a dot is not matched by a wildcard in its place.
    """
    names = pattern.split("/")
    for index, name in enumerate(names):
        inside = names[index + 1 : index + 2]
        known = _WHOLE if _WILD.search(f"{name}/{''.join(inside)}") else _FOLDERS | _FILES
        if name.startswith(".") and any(fnmatchcase(one, name.casefold()) for one in known):
            return name
        if (inside and inside[0] in _GIT_INSIDE and _may_end_in_git(name)) or (
            not inside and not name.startswith("*") and fnmatchcase("HEAD", name)
        ):
            return name
    return protected_name(pattern)


def _may_end_in_git(name: str) -> bool:
    return _WILD.search(name) is not None and fnmatchcase(".git", re.sub(r"^[^*?\[.]*", "", name) or "*")


def _plain(name: str) -> str:
    """As file systems may read it that know neither case, nor letters of one look, nor dots and blanks at the end."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(letter for letter in folded if unicodedata.category(letter) not in {"Cf", "Cc", "Mn"})
    # `.git::$INDEX_ALLOCATION` and `git~1` are .git on NTFS (CVE-2019-1353, CVE-2014-9390).
    seen = seen.split(":", 1)[0].rstrip(". ")
    return ".git" if seen == "git~1" else seen
