"""From raw files to batches: prepared arrays, splits, readers, audio and augmentation."""
