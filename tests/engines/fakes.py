"""Engines for tests: other machines, played in this process."""

import time

from masksmith.core import interrupt
from masksmith.engines import Done, Slot


class Died(Exception):
    """A worker has died."""


class Backwards:
    """Takes as many tasks as it has slots, and runs the newest of them first; who dies is given its task once more."""

    name = "fake"

    def __init__(self, *kinds):
        self.machines = [Slot(f"node {at}", kind, 1) for at, kind in enumerate(kinds or ["a", "a", "a"])]
        self.given, self.died, self.ran = [], [], []

    def run(self, tasks):
        waiting, under_way, is_over = iter(tasks), [], False
        while True:
            while not is_over and len(under_way) < len(self.machines):
                task = next(waiting, self)
                if task is None:
                    break
                if task is self:
                    is_over = True
                else:
                    under_way.append(task)
                    self.given.append(task.name)
            if not under_way:
                return
            interrupt.check_stop()
            task = under_way.pop()
            began = time.monotonic()
            try:
                value = task()
            except Died:
                self.died.append(task.name)
                value = task()
            self.ran.append(task.name)
            yield Done(task, value, time.monotonic() - began, task.on or self.machines[0].name)

    def slots(self):
        return self.machines

    def need(self, folder):
        assert folder.is_dir()

    def close(self):
        pass
