"""`mmfusion eval selftest`."""


def selftest() -> None:
    """Not there yet."""
    raise NotImplementedError
