"""Files that survive crashes: atomic writes, locks, checkpoints, the tensor cache."""

from trainer.files.atomic import patiently, sync_folder, write_whole
from trainer.files.cache import Cache, NotPrepared, ReadOnlyCache
from trainer.files.checkpoints import KEPT, FolderStore, Store, from_bytes, load_checkpoint, save_checkpoint, to_bytes

__all__ = [
    "Cache",
    "FolderStore",
    "from_bytes",
    "KEPT",
    "load_checkpoint",
    "NotPrepared",
    "patiently",
    "ReadOnlyCache",
    "save_checkpoint",
    "Store",
    "sync_folder",
    "to_bytes",
    "write_whole",
]
