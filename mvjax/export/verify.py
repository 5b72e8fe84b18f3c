"""Checks an export folder against its certificate: every file, every link, the verdict (`--verify DIR`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mvjax import files, messages, run_folder
from mvjax.export import verdict
from mvjax.stores import places
from mvjax.weights import file_names

_LINK = "link to "  # in place of a hash


def hashes(folder: Path) -> dict[str, str]:
    """Returns {file: SHA-256, or "link to FILE"} of all that a folder holds, but for its certificate."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == file_names.CERTIFICATE or not path.is_file():
            continue
        inside = path.is_symlink() and (path.parent / path.readlink()).parent == path.parent
        found[name] = f"{_LINK}{path.readlink()}" if inside else files.file_hash(path)
    return found


def verify(folder: Path) -> tuple[list[str], list[str]]:
    """Returns why a folder is not what its certificate vouches for, and what else there is to know.

    Raises:
      ValueError: if there is no certificate, or one without the hashes of all files or without numbers.
    """
    return _compare(folder, _read(folder / file_names.CERTIFICATE))


def _compare(folder: Path, certificate: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns what `verify` does, of a certificate that was read."""
    recorded, target = certificate["files"], certificate["target"]
    found = hashes(folder)
    problems, notes = [], []
    earned = verdict.verdict(certificate)
    if certificate["verdict"] != earned["verdict"]:
        problems.append(
            f"the certificate's verdict is {certificate['verdict']}, but its numbers say"
            f" {earned['verdict']}{messages.lines(earned['reasons'])}"
        )
    elif earned["verdict"] == "fail":
        problems.append(f"the certificate's verdict is fail: {'; '.join(earned['reasons'])}")
    for name, value in recorded.items():
        if name not in found:
            problems.append(f"{name}: missing")
        elif not _same(value, found[name], found):
            where = notes if name == file_names.CARD else problems  # whose license people fill in
            where.append(f"{name}: changed since it was certified")
    added = sorted(found.keys() - recorded.keys())
    read = set(file_names.owned(target))
    problems += [
        f"{name}: added since, and a runtime may read it" for name in added if name in read
    ]
    if others := [name for name in added if name not in read]:
        count = messages.counted(len(others), "file is", "files are")
        notes.append(f"{count} not certified, such as {others[0]}")
    command = None if places.url(folder) else f"mvjax certify {folder} --run RUN"
    return problems, notes + verdict.notes(certificate, command=command)


def report(folder: Path) -> int:
    """Prints what `verify` returns of a folder; returns the exit status."""
    certificate = _read(folder / file_names.CERTIFICATE)
    problems, notes = _compare(folder, certificate)
    head = (
        f"{messages.counted(len(problems), 'problem')}; export again"
        if problems
        else f"as certified: {certificate['verdict']}, {messages.counted(len(certificate['files']), 'file')}"
    )
    print(f"{places.named(folder)}: {head}{messages.lines([*problems, *notes])}")
    return 1 if problems else 0


def _read(path: Path) -> dict[str, Any]:
    if path.parent.is_file() or run_folder.is_run(path.parent):
        what = "a file" if path.parent.is_file() else "a run folder"
        raise ValueError(f"--verify {path.parent}: expected the folder of an export, got {what}")
    if not path.is_file():
        raise ValueError(
            f"{path}: missing: {path.parent} was not certified; export again, or certify it with"
            f" `mvjax certify {path.parent} --run RUN`"
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); export again") from error
    if not isinstance(content, dict) or "files" not in content:
        raise ValueError(f"{path}: holds no hashes of all files; export again")
    try:
        verdict.verdict(content)
        verdict.notes(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: holds no numbers to judge by ({error!r}); export again"
        ) from error
    return content


def _same(recorded: str, found: str, files_found: dict[str, str]) -> bool:
    """Whether a file is as recorded; a link may have become a copy of what it pointed to."""
    linked = recorded.startswith(_LINK) and files_found.get(recorded.removeprefix(_LINK))
    return found in (recorded, linked)
