"""Reports: one HTML file that shows what runs did, made from their work directories."""
