"""Brings the tables of an older release to the layout of this one: columns and indexes that are missing.

Nothing is taken away; what is changed holds more than it did: an INTEGER of PostgreSQL that is a BIGINT
now (SQLite's integers are all as long). Each column that is added may be left out of an INSERT: processes
of the older release go on beside newer ones.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, UniqueConstraint, inspect, literal
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.schema import ColumnDefault, CreateColumn, DefaultClause

from schemas.errors import InputError


def add_what_is_missing(connection: Connection, metadata: MetaData) -> None:
    """Add the columns and indexes that the tables, all of which exist, lack; in the connection's transaction.

    An INTEGER that has to be a BIGINT becomes one. Rows that are there get the column's default, or
    NULL. Raises InputError, before anything is changed, for a column that can have neither. The
    caller holds a lock by which one process at a time does this.
    """
    inspector = inspect(connection)
    tables = metadata.sorted_tables
    names = [table.name for table in tables]
    columns = inspector.get_multi_columns(filter_names=names)
    indexes = inspector.get_multi_indexes(filter_names=names)
    statements: list[str] = []
    for table in tables:
        known = {column["name"] for column in columns[table.schema, table.name]}
        statements += [_addition(connection, table, column) for column in table.columns if column.name not in known]
        if connection.dialect.name == "postgresql":
            statements += _widening(connection, table, columns[table.schema, table.name])
    for statement in statements:
        connection.exec_driver_sql(statement)
    for table in tables:
        known_indexes = {index["name"] for index in indexes[table.schema, table.name]}
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            if index.name not in known_indexes:
                index.create(connection)


def _addition(connection: Connection, table: Table, column: Column[Any]) -> str:
    """Return the statement that adds the column."""
    # A copy: what creates new tables stays as it is.
    copy = table.to_metadata(MetaData()).columns[column.name]
    # A default of Python's is one of the database's here, for rows and processes that do not know of it.
    if isinstance(copy.default, ColumnDefault) and copy.default.is_scalar:
        copy.server_default = DefaultClause(literal(copy.default.arg, copy.type))
    if why := _why_not(table, copy):
        raise InputError(
            f"table '{table.name}' of the database was made by another release: column '{column.name}' is missing, "
            f"and cannot be added because it {why}",
            mend="add it by hand, or use a new database (ASSISTQ_DATABASE_URL)",
        )
    specification = CreateColumn(copy).compile(dialect=connection.dialect)
    name = connection.dialect.identifier_preparer.format_table(table)
    return f"ALTER TABLE {name} ADD COLUMN {specification}"


def _widening(connection: Connection, table: Table, known: list[ReflectedColumn]) -> list[str]:
    """Return the statement that widens the table's columns: one, which rewrites the table once; none if they are wide.

    Others wait for it.
    """
    narrow = {
        each["name"] for each in known if isinstance(each["type"], Integer) and not isinstance(each["type"], BigInteger)
    }
    wide = [column for column in table.columns if column.name in narrow and isinstance(column.type, BigInteger)]
    if not wide:
        return []
    preparer = connection.dialect.identifier_preparer
    changes = ", ".join(f"ALTER COLUMN {preparer.format_column(column)} TYPE BIGINT" for column in wide)
    return [f"ALTER TABLE {preparer.format_table(table)} {changes}"]


def _why_not(table: Table, column: Column[Any]) -> str | None:
    if column.primary_key:
        return "is part of the primary key"
    unique = [each for each in table.constraints if isinstance(each, UniqueConstraint)]
    if any(column.name in each.columns for each in unique) or column.foreign_keys:
        return "belongs to a constraint"
    if not column.nullable and column.server_default is None:
        return "must not be empty and has no default"
    return None
