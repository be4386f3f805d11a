"""Why a checkpoint cannot be had."""


class LoadError(Exception):
    """The checkpoint cannot be loaded; the message is one sentence that says what to do."""
