//! Rules built by hand; the corpus is in tests/tests/render.rs.
