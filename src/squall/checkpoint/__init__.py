"""Checkpoints on disk: what they hold, how they are written beside training, how the newest whole one is found."""
