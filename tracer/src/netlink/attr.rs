//! Netlink attributes (TLV): zero-copy reader and writer.
