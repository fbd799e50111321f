"""SPEAKS: HTTP, the Open Inference Protocol V2, the admin routes."""
