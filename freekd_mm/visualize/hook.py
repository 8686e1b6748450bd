"""Sends pictures of the distillation to the visualizer while it trains."""
