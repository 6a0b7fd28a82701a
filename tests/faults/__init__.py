"""What is broken on purpose while the tests run, or between runs: FAULTS by their numbers."""
