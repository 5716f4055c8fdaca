"""The plugin on the Hub: its repository with card, gallery and checkpoint, in a folder or uploaded.

Example:
    >>> from instantstyle.hub import export, find_checkpoint, publish
    >>> publish("someone/instantstyle", find_checkpoint("tiny"))
"""

from instantstyle.hub.checkpoint import find_checkpoint
from instantstyle.hub.repository import export
from instantstyle.hub.upload import publish


__all__ = ["export", "find_checkpoint", "publish"]
