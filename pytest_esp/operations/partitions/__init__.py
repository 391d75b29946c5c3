"""New partition tables, what is in partitions, NVS."""
