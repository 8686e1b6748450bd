"""Generated scenes for the demo and the tests, pictures without labels, and pseudo labels for these."""
