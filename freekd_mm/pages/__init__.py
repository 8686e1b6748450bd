"""HTML pages that need no other file: their parts and charts."""
