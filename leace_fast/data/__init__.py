"""Labelled texts: where they come from, labels of words and spans as labels of tokens, and batches of one length."""
