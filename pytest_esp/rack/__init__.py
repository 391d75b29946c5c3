"""Which boards there are and who holds them."""
