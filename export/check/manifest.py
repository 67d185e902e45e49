"""Compare a dataset with its manifest."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from dreamgen.data.lerobot.files import find_file
from export.check.findings import Findings
from export.manifest import CHANGED_BY_USERS, MANIFEST, Entry, hash_files, present_files, read_manifest


def manifest_root(path: Path) -> Path:
    """Return the folder that a dataset's manifest is in: the dataset, or the folder of an HDF5 file."""
    return path if path.is_dir() else path.parent


def check_manifest(path: Path, num_threads: int | None, findings: Findings) -> bool:
    """Report every file that is not as it was written, and files that were added.

    Args:
        path: The dataset.
        num_threads: Files are hashed at once; one per core if None.
        findings: Receives what differs; what it holds already is not added again.

    Returns:
        Whether there is a manifest.
    """
    root = manifest_root(path)
    manifest = read_manifest(root)
    if manifest is None or (path != root and path.name not in manifest.entries and not manifest.problem):
        return False
    if manifest.problem:
        findings.add("manifest-damaged", MANIFEST, "", manifest.problem, "the file as it was written")
    listed, known = manifest.entries, {(finding.code, finding.file) for finding in findings.all()}
    if path == root:
        for name in sorted(set(present_files(root)) - set(listed)):
            if ("unnamed-file", name) not in known:
                findings.add("manifest-unlisted", name, "", "a file", "only files that the manifest lists")
    else:
        listed = {path.name: listed[path.name]} if path.name in listed else {}
    present, lost = {}, Findings()
    for name in listed:
        if (file := find_file(root, name, MANIFEST, lost)) is not None:
            present[name] = file
    for finding in lost.all():
        if (finding.code, finding.file) not in known:
            findings.add(finding.code, finding.file, finding.where, finding.value, finding.expected)
    for name, found in zip(present, hash_files(present.values(), num_threads), strict=True):
        if found != listed[name]:
            _add_difference(name, found, listed[name], findings)
    return True


def _add_difference(name: str, found: Entry | OSError, written: Entry, findings: Findings) -> None:
    severity = "warning" if any(fnmatch(name, pattern) for pattern in CHANGED_BY_USERS) else None
    if isinstance(found, OSError):
        findings.add("unreadable-file", name, "", str(found), f"{written.size} bytes as written")
    elif found.size != written.size:
        findings.add("manifest-differs", name, "", f"{found.size} bytes", f"{written.size} bytes as written",
                     severity=severity)  # fmt: skip
    else:
        findings.add("manifest-differs", name, "", f"SHA-256 {found.sha256[:16]}...", f"{written.sha256[:16]}...",
                     severity=severity)  # fmt: skip
