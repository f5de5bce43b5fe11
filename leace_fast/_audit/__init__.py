"""What an erasure left behind and what it cost: probes, losses, pictures."""
