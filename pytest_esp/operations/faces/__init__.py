"""What `esp` offers: a file for each group of operations, imported when the group is first used."""
