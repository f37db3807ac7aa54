"""`mmfusion eval fid`."""


def fid() -> None:
    """Not there yet."""
    raise NotImplementedError
