"""The event log of a service and how others follow it."""

from khomas.kit.events.consumer import EventConsumer, cursor_table
from khomas.kit.events.log import EventLog
from khomas.kit.events.table import NewEvent, event_table

__all__ = ["EventConsumer", "EventLog", "NewEvent", "cursor_table", "event_table"]
