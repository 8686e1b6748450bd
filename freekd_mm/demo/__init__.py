"""The demo: all steps from a teacher to an exported student, with the ordinary tools."""
