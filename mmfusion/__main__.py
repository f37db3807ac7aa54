"""`python -m mmfusion`: the command, for launchers that start a module in many processes."""

from mmfusion.cli import main

main()
