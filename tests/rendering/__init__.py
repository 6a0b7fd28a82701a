"""What answers give: files that are complete, clean, and pass the checks of their kind."""
