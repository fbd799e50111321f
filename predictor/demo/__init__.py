"""``hearth demo``: real images, real models, a real S3 protocol, the real server. ``run.py`` tells the story in order."""
