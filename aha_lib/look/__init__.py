"""What a run looked like: its record, figures, the dashboard, directions in its activations."""
