"""What programs do with their arguments: run others, read and write files."""
