"""Train a model: `deepspeed train.py --config mm_xl.yaml [key.path=value ...]`.

The same as `mmfusion train`; a file of its own because the DeepSpeed launcher starts files. Any
launcher that sets RANK and WORLD_SIZE will do, and plain `python train.py` is one rank.
"""

import sys

from mmfusion.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
