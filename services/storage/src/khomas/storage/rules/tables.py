"""The tables of rules and of what follows from them, beside those of the service."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    literal_column,
)

from khomas.kit.database import KeyText, UtcTime
from khomas.kit.leases import lease_columns
from khomas.storage.tables import metadata

rule = Table(
    "rule",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("dataset", KeyText, nullable=False, index=True),
    Column("directory", KeyText, nullable=False),
    Column("filter", String, nullable=False),
    Column("expression", String, nullable=False),
    Column("copies", Integer, nullable=False),
    Column("expire_time", UtcTime, nullable=True),
    Column("priority", Integer, nullable=False),
    Column("grouping", Integer, nullable=False),
    Column("share", String, nullable=False),
    Column("origin", String, nullable=False),
    Column("suspended", Boolean, nullable=False),
    Column("description", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("policy", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("message", String, nullable=False),
    Column("files", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("ok_copies", BigInteger, nullable=False),
    Column("replicating_copies", BigInteger, nullable=False),
    Column("stuck_copies", BigInteger, nullable=False),
    Column("missing_bytes", BigInteger, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("state_time", UtcTime, nullable=False),
    Column("version", Integer, nullable=False),
    # The StorageElements of all files, with grouping ALL.
    Column("places", JSON, nullable=False),
    # Number of the listing of its files that is under way or was the last one, and whether another one is due.
    Column("listing", BigInteger, nullable=False),
    Column("list_due", Boolean, nullable=False),
    # When it is looked at; what touches it meanwhile is counted, so that it is looked at again.
    Column("due_time", UtcTime, nullable=True, index=True),
    Column("touched", BigInteger, nullable=False),
    *lease_columns(),
)

# A policy makes one rule for a dataset.
_OF_POLICY: ColumnElement[bool] = literal_column("policy <> ''")
Index(
    "rule_of_policy",
    rule.c.policy,
    rule.c.dataset,
    unique=True,
    sqlite_where=_OF_POLICY,
    postgresql_where=_OF_POLICY,
)

# One row a wanted copy. What stands in storage_element and moving_from is protected.
rule_copy = Table(
    "rule_copy",
    metadata,
    Column("rule_uid", KeyText, primary_key=True),
    Column("file_uid", KeyText, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("file", KeyText, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # Empty = not chosen yet.
    Column("storage_element", KeyText, nullable=False),
    # A StorageElement that is being drained: the copy there is kept until the other one has come.
    Column("moving_from", KeyText, nullable=False),
    Column("state", Integer, nullable=False),
    Column("reason", Integer, nullable=False),
    Column("message", String, nullable=False),
    Column("transfer_uid", KeyText, nullable=False, index=True),
    # Ids with commas between them, where transfers have failed for good.
    Column("refused", String, nullable=False),
    # The listing that has seen it last.
    Column("listing", BigInteger, nullable=False),
    Column("state_time", UtcTime, nullable=False),
    Index("rule_copy_of_file", "file_uid", "storage_element"),
    Index("rule_copy_by_state", "rule_uid", "state"),
    Index("rule_copy_on", "storage_element", "state", "transfer_uid", "size_bytes"),
    Index("rule_copy_moving", "moving_from"),
)

# Files that may have joined a rule, or left it; `times` tells whether one was named again meanwhile.
rule_join = Table(
    "rule_join",
    metadata,
    Column("rule_uid", KeyText, primary_key=True),
    Column("file", KeyText, primary_key=True),
    Column("times", Integer, nullable=False),
)

policy = Table(
    "policy",
    metadata,
    Column("id", KeyText, primary_key=True),
    Column("uid", String, nullable=False),
    Column("description", String, nullable=False),
    Column("dataset_pattern", String, nullable=False),
    Column("filter", String, nullable=False),
    Column("rule", LargeBinary, nullable=False),
    Column("suspended", Boolean, nullable=False),
    Column("owner", String, nullable=False),
    Column("rules", BigInteger, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)
# Datasets that policies have not been asked about yet; without a policy all of them are.
policy_dataset = Table(
    "policy_dataset",
    metadata,
    Column("dataset", KeyText, primary_key=True),
    Column("policy", KeyText, primary_key=True),
)

drain = Table(
    "drain",
    metadata,
    # Of the StorageElement.
    Column("id", KeyText, primary_key=True),
    Column("uid", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("decommission", Boolean, nullable=False),
    Column("files_at_start", BigInteger, nullable=False),
    Column("message", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("end_time", UtcTime, nullable=True),
    # Up to which file it has looked, and when it begins anew.
    Column("after_file", KeyText, nullable=False),
    Column("due_time", UtcTime, nullable=False),
    *lease_columns(),
)

# When a replica was handed out the last time.
replica_access = Table(
    "replica_access",
    metadata,
    Column("file_uid", KeyText, primary_key=True),
    Column("storage_element", KeyText, primary_key=True),
    Column("access_time", UtcTime, nullable=False),
)

# What a process that ended may have left leased.
LEASED = (rule, drain)
