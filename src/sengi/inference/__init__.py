"""What a loaded model is asked: log-likelihoods of texts, and texts of its own."""
