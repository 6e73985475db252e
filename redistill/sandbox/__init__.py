"""The sandbox: model-written programs run in a jail of their own and are judged outside of it (docs/sandbox.md).

`jail` builds the command line and the limits, `seccomp` the filter of system calls, `process` starts a jail and talks to it, `inside`
is the program that runs in it, `plain` compares what comes out as data, `pool` keeps jails ready and holds the conversation.
"""

from redistill.sandbox.jail import Limits
from redistill.sandbox.pool import Case, Failure, Outcome, Pool, Program, judge
from redistill.sandbox.process import refuse_without_jail

__all__ = ["Case", "Failure", "Limits", "Outcome", "Pool", "Program", "judge", "refuse_without_jail"]
