"""KV states outside the slots: host RAM, disk, files saved by hand."""
