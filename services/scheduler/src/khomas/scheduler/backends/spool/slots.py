"""Jobs on a host without a batch system: each waits for one of a few slots, which are locks on files."""

# Takes a free slot, else waits in front of one after the other. The lock stays with the job until its end.
_WAIT = """mkdir -p "@SPOOL@/slots"
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
