"""COMPUTES: the worker process. The only package that imports torch."""
