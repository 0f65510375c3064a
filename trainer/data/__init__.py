"""Images and labels as shared tensors: built-in data sets, file formats, downloads."""

from trainer.data.catalogue import SIZES
from trainer.data.datasets import Data, Split, load_data
