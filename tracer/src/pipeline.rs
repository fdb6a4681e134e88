//! The live run: sources, attribution, output, shutdown.
