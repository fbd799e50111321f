"""What it costs to keep models apart, and what it is worth."""
