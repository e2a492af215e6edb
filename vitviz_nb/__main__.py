"""``python -m vitviz_nb`` is the command ``vitviz``, also where its script is not on the PATH."""

import sys

from .cli import main

sys.exit(main())
