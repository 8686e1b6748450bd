"""What ``tools/make_config.py`` knows, finds and writes."""
