"""How the databases find files: by an index, whatever the parameters."""

import re
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.catalog.app import service
from khomas.catalog.testing import create, new_file, request_id
from khomas.kit.database import count_statements
from khomas.kit.testing import serve

ANCESTORS = pb.ListLineageRequest.DIRECTION_ANCESTORS
DESCENDANTS = pb.ListLineageRequest.DIRECTION_DESCENDANTS


async def test_names_are_found_by_their_index_in_a_plan_for_any_parameters(postgresql_url: str, tmp_path: Path) -> None:
    async with serve(service, state=tmp_path, database_urls={"catalog": postgresql_url}) as served:
        catalog, database = CatalogServiceStub(served.channel), served.services["catalog"].parts
        with count_statements(database) as statements:
            await catalog.BatchCreateFiles(create(new_file("/hess/a"), new_file("/hess/b", parents=["/hess/a"])))
            await catalog.BatchGetFiles(pb.BatchGetFilesRequest(names=["/hess/a"]))
            replicas = pb.ReplicaUpdate(name="/hess/b", remove=["local"])
            await catalog.BatchUpdateReplicas(
                pb.BatchUpdateReplicasRequest(updates=[replicas], request_id=request_id())
            )
            await catalog.BatchDeleteFiles(
                pb.BatchDeleteFilesRequest(names=["/hess/b"], reason="test", request_id=request_id())
            )
        by_name = [one for one in statements if "file.name = ANY" in one]
        async with database.write() as connection:
            # Without this an empty table is read as a whole, index or not.
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            await connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
            plans = [await _plan(connection, number, one) for number, one in enumerate(by_name)]
    assert len(plans) == 4
    assert [plan for plan in plans if "file_name" not in plan] == []


@pytest.mark.parametrize("direction", [ANCESTORS, DESCENDANTS])
async def test_lineage_takes_edges_from_an_index_while_nothing_is_known_of_their_table(
    postgresql_url: str, tmp_path: Path, direction: pb.ListLineageRequest.Direction.ValueType
) -> None:
    async with serve(service, state=tmp_path, database_urls={"catalog": postgresql_url}) as served:
        catalog, database = CatalogServiceStub(served.channel), served.services["catalog"].parts
        for depth in range(6):
            names = [(f"/hess/{depth}/{number}", f"/hess/{depth - 1}/{number}") for number in range(1000)]
            files = [new_file(name, parents=[above] if depth else []) for name, above in names]
            await catalog.BatchCreateFiles(create(*files))
        with count_statements(database) as statements:
            request = pb.ListLineageRequest(names=["/hess/2/7"], direction=direction)
            edges = (await catalog.ListLineage(request)).edges
        [walk] = [one for one in statements if "RECURSIVE" in one]
        async with database.write() as connection:
            await connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
            plan = await _plan(connection, 0, walk)
    assert len(edges) == {ANCESTORS: 2, DESCENDANTS: 3}[direction]
    assert "Scan on parent " not in plan.replace("Bitmap Heap Scan on parent ", ""), plan
    assert "Merge Join" not in plan
    assert "Hash Join" not in plan


async def test_sqlite_reads_no_table_of_files_as_a_whole(tmp_path: Path) -> None:
    async with serve(service, state=tmp_path) as served:
        catalog, database = CatalogServiceStub(served.channel), served.services["catalog"].parts
        with count_statements(database) as statements:
            await catalog.BatchCreateFiles(create(new_file("/hess/a")))
            await catalog.BatchGetFiles(pb.BatchGetFilesRequest(names=["/hess/a"]))
            await catalog.ListFiles(pb.ListFilesRequest(directory="/hess"))
            await catalog.ListDirectory(pb.ListDirectoryRequest(directory="/hess"))
        async with database.read() as connection:
            plans = [
                await _sqlite_plan(connection, one) for one in statements if " FROM file" in one.replace("\n", " ")
            ]
    assert len(plans) >= 4
    assert [plan for plan in plans if "SCAN file" in plan] == []


async def _sqlite_plan(connection: AsyncConnection, statement: str) -> str:
    parameters = (None,) * statement.count("?")
    rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
    return "\n".join(row.detail for row in rows)


async def _plan(connection: AsyncConnection, number: int, statement: str) -> str:
    await connection.exec_driver_sql(f"PREPARE plan_{number} AS {statement}")
    parameters = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", statement))))
    rows = await connection.exec_driver_sql(f"EXPLAIN EXECUTE plan_{number}({parameters})")
    return "\n".join(row[0] for row in rows)
