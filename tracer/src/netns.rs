//! Network namespaces: find, name, enter.
