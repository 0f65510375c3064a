"""Images and labels as shared tensors: built-in data sets, file formats, downloads."""
