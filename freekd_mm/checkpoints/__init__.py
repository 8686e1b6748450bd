"""Checkpoints: where they come from, loading them as data, writing them whole."""
