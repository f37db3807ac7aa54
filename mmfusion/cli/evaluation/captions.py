"""`mmfusion eval captions`."""


def captions() -> None:
    """Not there yet."""
    raise NotImplementedError
