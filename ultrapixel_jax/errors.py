"""The one exception that a person at the command line is meant to read."""


class UserError(Exception):
    """Bad input: the message is one line that says what was wrong, with the value, and what to do.

    Scripts print it after ``error:`` and exit with code 2; nothing else is caught.
    """
