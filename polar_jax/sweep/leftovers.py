"""Temporary files in a sweep's folder, wherever a process may have been writing."""

import pathlib

from polar_jax.sweep import files, shard_files

# Folders that are written to, and folders of one folder per shard or per thousand of them.
_FOLDERS = ("", "figures", "claims", "failures")
_NUMBERED = ("shards", "checkpoints")


def temporaries(out: pathlib.Path) -> list[pathlib.Path]:
    """All temporary files in a sweep's folder, of living processes and of dead ones."""
    folders = [out / name for name in _FOLDERS]
    for name in _NUMBERED:
        folders += shard_files.folders(out / name)
    return [
        folder / name
        for folder in folders
        for name in shard_files.names(folder)
        if files.is_temporary(name)
    ]
