"""Speed, measured side by side and printed as tables: ``python -m benchmarks`` runs all of them."""
