"""What a run leaves for a reader."""
