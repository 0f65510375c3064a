"""Files that survive crashes: atomic writes, locks, sealed content, checkpoints, the tensor cache. Needs no torch."""

from trainer.files.atomic import (
    UNFINISHED,
    make_whole_folder,
    open_anew,
    open_whole,
    patiently,
    sync_folder,
    write_whole,
)
from trainer.files.cache import Cache, NotPrepared, ReadOnlyCache
from trainer.files.checkpoints import KEPT, FolderStore, Store, from_bytes, load_checkpoint, save_checkpoint, to_bytes
from trainer.files.locks import locked, take_lock
from trainer.files.sealed import seal_json, unseal_json

__all__ = [
    "Cache",
    "FolderStore",
    "from_bytes",
    "KEPT",
    "load_checkpoint",
    "locked",
    "make_whole_folder",
    "NotPrepared",
    "open_anew",
    "open_whole",
    "patiently",
    "ReadOnlyCache",
    "save_checkpoint",
    "seal_json",
    "Store",
    "sync_folder",
    "take_lock",
    "to_bytes",
    "UNFINISHED",
    "unseal_json",
    "write_whole",
]
