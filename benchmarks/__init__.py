"""Figures, taken side by side in one run: what a test costs, and how long a run takes to begin."""
