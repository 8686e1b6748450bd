"""Reports: one HTML file that shows what runs did, from their work directories."""
