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
from trainer.files.checkpoints import (
    KEPT,
    FolderStore,
    Store,
    from_bytes,
    keep_newest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    to_bytes,
)
from trainer.files.locks import locked, take_lock
from trainer.files.sealed import seal_json, unseal_json
