"""What can be done to a board or an image: one folder per domain, with typed results."""
