"""What the machine offers to every other package. Imports nothing of polyphi."""
