"""A checkpoint and questions or held-out text become scores with intervals."""
