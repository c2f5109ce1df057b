"""The one exception that stands for a mistake of the person at the command line."""


class UserError(ValueError):
    """A mistake of the person at the command line, told in one sentence: what, where, what to do.

    The scripts print it and exit with code 2.
    """
