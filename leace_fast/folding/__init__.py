"""Erasers in weights: what reads a site and what writes to it, op by op, changes that can be undone, and adapters."""
