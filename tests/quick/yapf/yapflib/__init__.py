"""Has ``yapf_api``."""
