"""Measures speed and memory; ``python -m benchmarks --help`` says what."""
