"""The boards of a rack, and the leases on them."""
