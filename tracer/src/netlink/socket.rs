//! Netlink sockets over neli.
