"""What is wrong with a caption: typed findings, and what is done about each.

`judge` looks at one text while it is made; `layer.check` at a whole layer of captions.
"""

from cutline.checks.findings import KINDS, Finding
from cutline.checks.judging import Judged, Policies, Policy, judge

__all__ = ["KINDS", "Finding", "Judged", "Policies", "Policy", "judge"]
