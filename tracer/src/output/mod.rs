//! Sinks: text, JSON lines, the summary.
