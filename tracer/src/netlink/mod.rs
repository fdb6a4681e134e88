//! Netlink sockets and codecs: bytes <-> structs, no policy.

pub mod attr;
pub mod ipset;
pub mod nft_write;
pub mod nftables;
pub mod routes;
pub mod rtnl;
pub mod socket;
