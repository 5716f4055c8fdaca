"""The plugin on the Hub: its repository, card, gallery and checkpoints."""
