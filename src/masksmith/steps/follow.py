"""Another process of a training over several devices; that training starts it, nobody else.

python -m masksmith.steps.follow PROJECT RUN FOLD DEVICES FOLDER RANK
"""

import logging
import os
import sys
import threading
import time
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.project.folder import Project
from masksmith.steps.train import follow_member
from masksmith.training.devices import refuse_as_follower


def _end_with_leader(leader: int) -> None:
    """End at once where the process that began this one is gone: nobody would tell it so while it waits for that."""
    while os.getppid() == leader:
        time.sleep(1)
    os._exit(1)


def main(root: str, run: str, fold: str, devices: str, folder: str, rank: str) -> int:
    """Follow until the leader says that nothing more comes; return the exit code."""
    logging.getLogger("masksmith").setLevel(logging.CRITICAL)  # the leader says it all
    threading.Thread(target=_end_with_leader, args=(os.getppid(),), daemon=True).start()
    project = Project.open(Path(root))
    try:
        follow_member(project, project.run(run), int(fold), Path(folder), int(rank), int(devices))
    except InputError as error:
        refuse_as_follower(Path(folder), int(rank), error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
