"""`mmfusion eval clip`."""


def clip() -> None:
    """Not there yet."""
    raise NotImplementedError
