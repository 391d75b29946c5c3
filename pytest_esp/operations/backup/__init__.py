"""Flash saved to a folder, and brought back."""
