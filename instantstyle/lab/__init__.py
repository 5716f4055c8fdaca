"""The laboratory: what of a reference each way of using it brings along, and what each attention block carries.

Example:
    >>> from instantstyle.lab import Condition, evaluate
    >>> found = evaluate([Condition("plain"), Condition("style", target_blocks="style")], "evaluation", pairs=24)
    >>> found.rows[1].difference["content_leaked"].mean
"""

from instantstyle.lab.ablation import probe
from instantstyle.lab.conditions import Condition
from instantstyle.lab.evaluation import evaluate


__all__ = ["Condition", "evaluate", "probe"]
