"""torchrun that ends as its processes do: with their exit code, and with nothing printed below their last line.

``python -m lens.distributed.torchrun --nproc-per-node 8 scripts/train.py …`` takes torchrun's own options. Torchrun
itself ends with code 1 and a traceback of its own, whatever the processes have said.
"""

from __future__ import annotations

import logging
import sys

from lens.errors import BAD_INPUT, FAILED, INTERRUPTED

TOLD = {FAILED, BAD_INPUT, INTERRUPTED}  # exit codes of a process that has said why


def main() -> None:
    """Run torchrun; its traceback stays where a process ended without a word, as by SIGKILL."""
    logging.disable(logging.ERROR)  # its processes log for themselves; torchrun would repeat their exit codes
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code not in TOLD:
            raise
        sys.exit(code)
    except SignalException:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
