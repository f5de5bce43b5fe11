"""Erasers in a running model: after modules, in the pass that norms, and with the add before it."""
