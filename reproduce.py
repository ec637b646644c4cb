"""Reproduces the tables of the MixLoRA paper (arXiv 2404.15159): measured beside reported.

    python reproduce.py --table main                      # bundled model and data, minutes on a CPU
    python reproduce.py --table main --preset small --data-dir DIR
    python reproduce.py --table main --preset paper --dry-run
    python reproduce.py --table efficiency --shape llama2-7b
    python reproduce.py --table scaling --help            # every table has options of its own

The command line, with its exit statuses, is in `harness.command_line`.
"""

import sys

from harness.command_line import main

if __name__ == "__main__":
    sys.exit(main())
