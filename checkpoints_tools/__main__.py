"""`python -m checkpoints_tools` is `rtp-jax-ckpt`."""

import sys

from checkpoints_tools.main import main

sys.exit(main())
