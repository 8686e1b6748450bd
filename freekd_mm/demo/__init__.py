"""The demo: the whole way from a teacher to an exported student, through the ordinary tools."""
