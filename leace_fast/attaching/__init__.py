"""Erasers in a running model: hooks, norms that erase in the pass that norms, and the add before them."""
