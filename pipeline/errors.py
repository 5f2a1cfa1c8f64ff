"""The one error type for input that a person can mend; everything else that raises is a defect of ours."""


class IgptError(Exception):
    """Bad input or an unusable service. The message is one line: the value, what was allowed, what to do.

    The command line prints it and exits with status 2, without a traceback.
    """
