"""What a production line does to boards: program them, one or fifty at once, test them, give them their data."""
