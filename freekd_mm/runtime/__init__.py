"""The runtime: a student of any config learns from a teacher of any other."""
