"""What can be done to a board or an image: a folder for each domain, typed results."""
