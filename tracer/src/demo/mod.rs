//! `fwtrace demo`: a broken firewall in namespaces of its own, with real traffic.
