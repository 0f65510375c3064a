"""Images and labels as shared tensors: built-in data sets, file formats, downloads, data of one's own."""

from trainer.data.catalogue import SIZES, is_own
from trainer.data.datasets import Data, Split, load_data
