"""The errors a user is meant to read: their message is the whole report, without a traceback."""


class BadInput(ValueError):
    """Something the user gave cannot be used; the command prints the message and exits with status 2.

    The message says what was given, where, what is allowed, and what to do.
    """


class RunFailed(RuntimeError):
    """A run that started could not go on; the command prints the message and exits with status 1."""


class NotPositiveDefinite(RunFailed):
    """A damped Hessian has no Cholesky factor; more calibration tokens or more damping help."""


class TrialStopped(Exception):
    """A trial of a search is not worth going on with; no failure, and no result either.

    The message says at which step, with which value.
    """
