"""The 15 common corruptions in 5 severities, drawn with NumPy and OpenCV, and what a model loses under them."""
