//! Netlink sockets and codecs: bytes <-> structs, no policy.

pub mod attr;
pub mod conntrack;
pub mod ipset;
pub mod legacy_trace;
pub mod nflog;
pub mod nft_write;
pub mod nftables;
pub mod nftrace;
pub mod routes;
pub mod rtnl;
pub mod socket;
pub mod sockets;
