"""Jobs on a host without a batch system: each waits for one of a few slots, which are locks on files.

A waiting job leaves word who it is. atd on a busy machine loses jobs that it has started out of its queue (a lock older
than a minute is removed while its job is being started), and what runs the job keeps the process of what waited.
"""

# Takes a free slot, else waits in front of one after the other. The lock stays with the job until its end.
_WAIT = """{{
  read -r boot < /proc/sys/kernel/random/boot_id
  read -r process < "/proc/$$/stat"
  echo "$boot $process" > "@FOLDER@/process"
}} 2> /dev/null
mkdir -p "@SPOOL@/slots"
slot=0
while [ "$slot" -lt {slots} ]; do
  exec 9> "@SPOOL@/slots/$slot"
  flock -n 9 && break
  slot=$((slot + 1))
done
if [ "$slot" -eq {slots} ]; then
  slot=$(($$ % {slots}))
  exec 9> "@SPOOL@/slots/$slot"
  until flock -w 20 9; do
    slot=$(((slot + 1) % {slots}))
    exec 9> "@SPOOL@/slots/$slot"
  done
fi
"""


def in_slot(runs: str, slots: int) -> str:
    """The script of one job."""
    return f"#!/bin/sh\n# khomas @BATCH@\nKHOMAS_INDEX=0\n{_WAIT.format(slots=slots)}{runs}"
