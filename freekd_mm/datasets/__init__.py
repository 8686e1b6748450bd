"""Pictures without labels, and pseudo labels for these."""
