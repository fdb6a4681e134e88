//! nf_tables rulesets as data.
