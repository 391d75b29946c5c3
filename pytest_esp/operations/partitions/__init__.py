"""New partition tables, the contents of partitions, NVS."""
