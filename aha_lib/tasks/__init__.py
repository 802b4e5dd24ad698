"""What a model learns: puzzles, prompts, rewards, and the worked text of a cold start."""
