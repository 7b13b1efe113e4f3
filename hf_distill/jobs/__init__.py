"""What the recipes share: their command line, their text, their teachers, and the comparison at the end."""
