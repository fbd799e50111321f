"""What a load test's run directory shows: figures, gates, pictures, one page."""
