"""MT-Bench: two-turn questions, answers, a judge, scores."""
