"""Data side: raw images to immutable dataset snapshots of palette-quantized WebDataset shards. Never loads torch."""
