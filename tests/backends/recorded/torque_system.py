"""Emulates the commands of Torque 6 in the formats of its manual: `python -m … FOLDER SLOTS`."""

import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.backends.recorded.batch_system import Task
from tests.backends.recorded.pbs_system import Pbs
from tests.backends.recorded.server import Answer, Call, UsageError, serve

PROGRAMS = ("qsub", "qstat", "qdel", "qhold", "qrls")


class Torque(Pbs):
    """The server's answers, where they are not those of PBS Professional."""

    array_option = "-t"
    index_variable = "PBS_ARRAYID"

    def qstat(self, call: Call) -> Answer:
        if "-x" not in call.arguments:
            raise UsageError("this emulation knows -x only")
        data = ElementTree.Element("Data")
        for task in list(self.system.tasks.values()):
            data.append(_element(task))
        return Answer(ElementTree.tostring(data, encoding="unicode") + "\n")


def _element(task: Task) -> ElementTree.Element:
    index = "" if task.index is None else str(task.index)
    values = {
        "Job_Id": f"{task.number}{f'[{index}]' if index else ''}.pbs",
        "Job_Name": f"{task.name}{f'-{index}' if index else ''}",
        "job_state": "C" if task.end_time else "R" if task.start_time else "H" if task.held else "Q",
        "queue": task.queue,
    }
    if task.start_time:
        values |= {"exec_host": "node1/0", "start_time": str(int(task.start_time))}
    if task.end_time:
        values["exit_status"] = str(task.exit_code if task.exit_code >= 0 else 256 - task.exit_code)
    job = ElementTree.Element("Job")
    for name, value in values.items():
        ElementTree.SubElement(job, name).text = value
    return job


if __name__ == "__main__":
    torque = Torque(int(sys.argv[2]))
    serve(Path(sys.argv[1]), torque.system, torque.answer)
