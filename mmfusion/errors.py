"""The one exception that means "the user can mend this": shown as a line, never as a traceback."""


class UserError(Exception):
    """A mistake in a config, prompt, picture, shard, caption or checkpoint.

    The message names the file or key, what is wrong with it, and the remedy.
    The command line prints it and exits with code 2.
    """
