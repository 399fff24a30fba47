"""Tables: Parquet files, here or at an address, and the columns that go with their images into the output."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..data.pixels import first_line
from .remote import is_address, open_remote

_BUFFER = 2**23  # bytes of a column that are held while it is read over a network; without, a row group's would be


def open_table(path: str) -> Any:
    """Open a Parquet file so that a column can be read without all of a row group in memory.

    Args:
        path: Its path or address.

    Returns:
        A pyarrow.parquet.ParquetFile, to be closed.

    Raises:
        OSError: If it cannot be read.
        pyarrow.ArrowInvalid: If it is no Parquet file.
    """
    import pyarrow.parquet as pq

    if is_address(path):
        return pq.ParquetFile(open_remote(path), buffer_size=_BUFFER, pre_buffer=False)
    return pq.ParquetFile(path, memory_map=True, pre_buffer=False)


def carried_columns(
        schemas: Mapping[Any, str],
        image_column: str,
        names: Sequence[str] | None,
        taken: Collection[str],
) -> Any:
    """Choose the columns that go from Parquet files into the output.

    Args:
        schemas: The schemas of the files, and for each the path of a file that has it.
        image_column: The column of images, which stays behind.
        names: The columns to carry over; None for all.
        taken: What other columns of the output are called.

    Returns:
        A pyarrow.Schema of the columns. A file that lacks one has nulls there.

    Raises:
        ValueError: If there is no such column, its name is taken, or its type differs from file to file.
    """
    import pyarrow as pa

    carried = pa.schema([])
    for schema, path in schemas.items():
        for field in schema:
            name = field.name
            if name == image_column or (names is not None and name not in names):
                continue
            remedy = 'rename it, or name the columns to carry over with --columns (columns)'
            if name in taken:
                raise ValueError(f'{path}: the column {name!r} is called as one of the output; {remedy}')
            if schema.names.count(name) > 1:
                raise ValueError(f'{path}: there are several columns {name!r}; {remedy}')
            try:
                carried = pa.unify_schemas([carried, pa.schema([(name, field.type)])])
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                raise ValueError(
                    f'{path}: the column {name!r} holds {field.type}, and {carried.field(name).type} in another file;'
                    ' give them one type, or leave the column out with --columns (columns)') from error
    missing = [name for name in names or () if name not in carried.names]
    if missing:
        known = {name for schema in schemas for name in schema.names} - {image_column}
        raise ValueError(
            f'Invalid columns: no input has {missing[0]!r} (--columns); there are'
            f' {", ".join(map(repr, sorted(known))) or "none beside the images"}.')
    return carried


def read_columns(parts: Iterable[tuple[str, range | None]], schema: Any) -> Any:
    """Read the rows of some columns.

    Args:
        parts: Parquet files and rows of them that follow each other; None for an image file, which has nulls.
        schema: The columns, a pyarrow.Schema.

    Returns:
        A pyarrow.Table with that schema.

    Raises:
        OSError: If a file cannot be read, or has fewer rows than it had.
    """
    import pyarrow as pa

    tables = [schema.empty_table()]
    for path, rows in parts:
        if rows is None:
            tables.append(_nulls(schema, 1))
            continue
        try:
            tables.append(_read_rows(path, rows, schema))
        except (OSError, pa.ArrowException) as error:
            raise OSError(f'{path}: its columns cannot be read any more ({first_line(error)})') from error
    return pa.concat_tables(tables).combine_chunks()


def _read_rows(path: str, rows: range, schema: Any) -> Any:
    import pyarrow as pa

    with open_table(path) as file:
        groups, before, end = [], 0, 0
        for group in range(file.num_row_groups):
            first, end = end, end + file.metadata.row_group(group).num_rows
            if end <= rows.start:
                before = end
            elif first < rows.stop:
                groups.append(group)
        if end < rows.stop:
            raise OSError(f'it has {end} rows, fewer than when the run began')
        names = [name for name in schema.names if name in file.schema_arrow.names]
        table = file.read_row_groups(groups, columns=names).slice(rows.start - before, len(rows))
    nulls = _nulls(schema, len(rows))
    columns = [
        table[field.name].cast(field.type) if field.name in names else nulls[field.name] for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _nulls(schema: Any, number: int) -> Any:
    import pyarrow as pa

    return pa.Table.from_arrays([pa.nulls(number, field.type) for field in schema], schema=schema)
