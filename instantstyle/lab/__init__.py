"""The laboratory: measurements of what a reference brings along, and of what each block carries."""
