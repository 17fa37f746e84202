"""The two ways in which rlft stops on purpose. Everything else that is raised is a bug and shows its traceback."""


class UserError(Exception):
    """Bad input: a file, key or row that cannot be used. The message names it, what was found, what was expected and
    how to mend it. The command line prints it without a traceback and exits with code 2."""


class RunError(Exception):
    """A run that began and cannot go on: a dead actor, a wait that ran out, weights that did not arrive, a loss that is
    not finite. The message names the stage, who was doing it and what to do next. Exit code 1."""


class WeightSyncError(RunError):
    """A generator is not provably on the weights that it should serve."""
