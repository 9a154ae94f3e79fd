// Where the queries and keys of one text are. The queries may be only the last positions of the text. The keys before
// them come from a cache.

struct TextRows {
    q_row: u32,    // the row of the first query in q, and of its result in z
    n_query: u32,
    position: u32, // the position of the first query, which attends to keys 0 ..= position
    k_row: u32,    // the row of the first key in kv
    n_key: u32,
}
