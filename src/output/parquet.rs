//! `.parquet`: the table of `.csv` with a list of `values` in every row, and the metadata of the other formats as
//! key-value metadata. Not compressed, because f32 values shrink by only a tenth. Owns the schema; the `parquet` crate
//! writes the format. Read next: `table.rs`.

use super::Record;
use super::store::Store;
use super::table::{Row, each_row};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::io::{Error, Write};
use std::sync::Arc;

const SCHEMA: &str = "message actscope {
    required binary hook (UTF8);
    required int32 text;
    required int32 position;
    optional int64 token_id;
    required binary token (UTF8);
    optional int32 head;
    required group values (LIST) { repeated group list { required float element; } }
}";

/// The number of values in a row group, which is in memory at once.
const GROUP: usize = 16 << 20;

/// The rows of the current row group, column by column.
#[derive(Default)]
struct Columns {
    hooks: Vec<ByteArray>,
    texts: Vec<i32>,
    positions: Vec<i32>,
    ids: Vec<Option<i64>>,
    tokens: Vec<ByteArray>,
    heads: Vec<Option<i32>>,
    values: Vec<f32>,
    /// 0 where a row's values begin, 1 within.
    repetition: Vec<i16>,
}

impl Columns {
    fn push(&mut self, row: &Row<'_>) {
        self.hooks.push(row.hook.into());
        self.texts.push(row.text as i32);
        self.positions.push(row.label.position as i32);
        self.ids.push(row.label.id.map(i64::from));
        self.tokens.push(row.label.text.as_str().into());
        self.heads.push(row.head.map(|head| head as i32));
        self.repetition.extend((0..row.values.len()).map(|i| i16::from(i > 0)));
        self.values.extend(row.values.iter());
    }

    /// In the order of the schema.
    fn write(&self, group: &mut SerializedRowGroupWriter<'_, &mut (impl Write + Send)>) -> Result<(), ParquetError> {
        column::<ByteArrayType, _>(group, &self.hooks, None, None)?;
        column::<Int32Type, _>(group, &self.texts, None, None)?;
        column::<Int32Type, _>(group, &self.positions, None, None)?;
        optional::<Int64Type, _>(group, &self.ids)?;
        column::<ByteArrayType, _>(group, &self.tokens, None, None)?;
        optional::<Int32Type, _>(group, &self.heads)?;
        column::<FloatType, _>(group, &self.values, Some(&vec![1; self.values.len()]), Some(&self.repetition))
    }
}

fn column<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    definition: Option<&[i16]>,
    repetition: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let ended = || ParquetError::General("the schema has fewer columns than are written".into());
    let mut writer = group.next_column()?.ok_or_else(ended)?;
    writer.typed::<T>().write_batch(values, definition, repetition)?;
    writer.close()
}

fn optional<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[Option<T::T>],
) -> Result<(), ParquetError> {
    let definition: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let some: Vec<T::T> = values.iter().flatten().cloned().collect();
    column::<T, W>(group, &some, Some(&definition), None)
}

pub(super) fn write(record: &Record<'_>, store: &Store, mut out: &mut (impl Write + Send)) -> std::io::Result<()> {
    let metadata = record.metadata().into_iter().map(|(key, value)| KeyValue::new(key.into(), value)).collect();
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_column_dictionary_enabled("hook".into(), true)
        .set_column_dictionary_enabled("token".into(), true)
        .set_created_by(format!("actscope {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(metadata))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA).map_err(Error::other)?);
    let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::new(properties)).map_err(Error::other)?;
    let mut columns = Columns::default();
    let mut flush = |columns: &mut Columns| -> Result<(), ParquetError> {
        let mut group = writer.next_row_group()?;
        std::mem::take(columns).write(&mut group)?;
        group.close().map(drop)
    };
    each_row(record, store, |row| {
        columns.push(&row);
        if columns.values.len() < GROUP { Ok(()) } else { flush(&mut columns).map_err(Error::other) }
    })?;
    if !columns.texts.is_empty() {
        flush(&mut columns).map_err(Error::other)?;
    }
    writer.close().map(drop).map_err(Error::other)
}
