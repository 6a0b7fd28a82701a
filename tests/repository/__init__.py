"""The repository itself: its documents, and the ways of working on it."""
