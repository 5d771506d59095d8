"""Errors that are meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: bad input, configuration, plugin or environment.

    The message says what went wrong, where, and what to do next. Command lines print it without
    a traceback (see :mod:`video_pipeline.cli`); every other exception is a bug and keeps it.
    """


class TaskError(UserError):
    """A user's task or dataset broke the contract of its base class."""
