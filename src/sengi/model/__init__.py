"""A transformers model, found safely and made padding-free."""
