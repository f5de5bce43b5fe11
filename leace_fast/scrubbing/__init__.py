"""A concept erased at every site of a model, one after another: replayed layers, where they wait, checkpoints."""
