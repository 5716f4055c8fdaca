"""Styles: encoded references, their files, and their way onto a UNet."""
