"""Work on a production line: program boards (one or fifty at once), test them, provision them."""
