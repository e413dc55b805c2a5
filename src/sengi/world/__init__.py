"""A generated organisation that no model has seen, as training and evaluation files."""
