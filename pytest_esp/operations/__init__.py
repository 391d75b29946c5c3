"""What can be done to a board or an image: one module per domain, typed results."""
