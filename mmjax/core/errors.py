"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake in what the user gave us: a config, a flag, a file, a folder.

    The message is one line that names the field, the value found and what would be right. The command line prints it and
    exits with status 2; every other exception is a defect of ours and keeps its traceback.
    """
