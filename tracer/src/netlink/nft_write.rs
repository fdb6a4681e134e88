//! nf_tables batches: create tables, chains, rules and sets.
