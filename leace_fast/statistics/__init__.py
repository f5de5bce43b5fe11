"""What `Moments` is made of: rows checked and staged, their sums on the CPU or a GPU, and what follows from these."""
