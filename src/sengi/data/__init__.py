"""Data: files and rows to conversations, samples, steps and packs."""
