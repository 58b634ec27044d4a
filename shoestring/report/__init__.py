"""Run records in, HTML page and live terminal out."""
