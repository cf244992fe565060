"""The policy over many ranks."""
