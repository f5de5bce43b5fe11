"""Experiments of the papers on real data: `make experiments`. Each module is one, and says what it measures."""
