"""`mmfusion eval frontier`."""


def frontier() -> None:
    """Not there yet."""
    raise NotImplementedError
