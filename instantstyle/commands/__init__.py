"""The commands: one file each. Only here is `argparse` known."""
