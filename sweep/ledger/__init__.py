"""The durable record of a sweep: events on disk, read and written."""
