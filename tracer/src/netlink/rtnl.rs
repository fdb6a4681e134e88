//! rtnetlink: links, addresses, routes of fwtrace's own namespaces.
