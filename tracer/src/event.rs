//! The one public event type, version 1.
