"""The digits suite: all five tasks of a digits model, judged by real digits."""
