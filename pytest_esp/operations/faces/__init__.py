"""What `esp` offers: one file per group of operations, imported on first use."""
