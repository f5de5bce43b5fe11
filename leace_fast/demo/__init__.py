"""A demonstration that needs no download: a small language model of Python code, trained on the standard library."""
