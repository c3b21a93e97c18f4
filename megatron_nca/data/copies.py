"""A dataset's copy on the own disk of a node that trains on it: hashed when it is made and when it is found there."""

import hashlib
import os
import socket
import time
from pathlib import Path

from megatron_nca import files
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.data.pairs import mask_prefix
from megatron_nca.errors import ConfigError, DataError, explain

BLOCK_BYTES = 1 << 22
LOOK_SECONDS = 0.2
"""Between two looks at a lock that another process of the node holds while it copies."""


def folder_here(text: str) -> Path:
    """A folder of this node, with its variables filled in. Raises ConfigError if one of them is not set here."""
    path = os.path.expandvars(text)
    if "$" in path or not os.path.isabs(path):
        reason = f"is {path!r} on {socket.gethostname()}: a variable is not set, or holds no absolute path."
        raise ConfigError(explain("--copy-data-to", text, reason, "set it on every node, or name a folder."))
    return Path(path)


def place(prefix: Path, folder: Path) -> Path:
    """Prefix of the copy: in a folder that is named by the manifest, so no other dataset is taken for it.

    Raises DataError.
    """
    Manifest.load(prefix)
    return folder / f"dataset-{files.sha256(part(prefix, 'json'))[:16]}" / prefix.name


def copy(prefix: Path, folder: Path) -> Path:
    """Have the dataset in a folder of this node's disk and return the copy's prefix; one that is whole is kept.

    Raises DataError where there is too little space, or the files are not what their manifest says. Whoever wants a
    copy gets no other file.
    """
    manifest, target = Manifest.load(prefix), place(prefix, folder)
    lock = _wait_for_lock(target.with_name(".lock"))
    try:
        _have(prefix, manifest, target)
        if "loss_mask" in manifest.origin:
            _have(mask_prefix(prefix), Manifest.load(mask_prefix(prefix)), mask_prefix(target))
        return target
    finally:
        os.close(lock)


def _have(prefix: Path, manifest: Manifest, target: Path) -> None:
    if _is_whole(target):
        return
    for left in target.parent.glob(".*.tmp"):  # by a process that was killed
        files.remove(left)
    cure = f"free some space on {socket.gethostname()}, or do not copy data to nodes."
    need = sum(record.bytes for record in manifest.files.values())
    files.check_free(target.parent, need, "--copy-data-to", str(target.parent), cure)
    for ending, record in manifest.files.items():
        _copy_file(part(prefix, ending), part(target, ending), record.sha256)
    manifest.save(target)


def _wait_for_lock(path: Path) -> int:
    while (lock := files.try_lock(path)) is None:
        time.sleep(LOOK_SECONDS)
    return lock


def _is_whole(target: Path) -> bool:
    try:
        Manifest.load(target).verify(target)
    except DataError:
        return False
    return True


def _copy_file(source: Path, target: Path, sha256: str) -> None:
    """Hashed as it is read; what was written is synced, and hashed again when it is next found."""
    digest = hashlib.sha256()
    with files.publish(target) as aside, open(source, "rb") as read, open(aside, "xb") as written:
        while block := read.read(BLOCK_BYTES):
            digest.update(block)
            written.write(block)
        if digest.hexdigest() != sha256:
            raise DataError(f"{source}: its sha256 is {digest.hexdigest()}, but its manifest says {sha256}; it was not "
                            "copied to the node. Cure: make the dataset again.")
