"""Measures speed and memory; ``python -m speed --help`` says what."""
