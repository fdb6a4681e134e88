//! nf_tables messages -> the ruleset model.
