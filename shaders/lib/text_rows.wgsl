// Where one text's queries and keys lie. Its queries may be the last of its keys: those before them come from a cache.

struct TextRows {
    q_row: u32,    // the row of q with its first query, and the row of z with that one's result
    n_query: u32,
    position: u32, // of its first query, which sees keys 0 ..= position; the next one sees one more
    k_row: u32,    // the row of k and v with its first key
    n_key: u32,
}
