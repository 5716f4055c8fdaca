"""The training of the embedded checkpoint, stage by stage: `python -m training`."""
