"""Everything that decides a sweep: options, the plan and its file, paths, remote storage."""
