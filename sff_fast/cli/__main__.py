"""``python -m sff_fast.cli``: the command line without the installed script."""

import sys

from sff_fast.cli import main

sys.exit(main())
