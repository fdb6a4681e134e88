//! fwtrace names the firewall rule behind each packet that Linux netfilter drops.
//!
//! ```text
//! kernel                     agent
//! kfree_skb  --ring buffer-> bpf::reader -----> attribute --> event::Event --> output::{text,json}
//! nf_tables dump+generation> ruleset::snapshot --^  ^  ^
//! xtables GET_ENTRIES -----> xtables::legacy -------+  |
//! NFTRACE, TRACE ----------> trace (--trace) ----------+
//!                            eval: the rulesets on the packet, asked by attribute
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`cli`] | command line -> a validated plan; nothing else sees raw flags |
//! | [`bpf`] | the only module that names aya: load, calibrate, attach, read the ring |
//! | [`kernel`] | the running kernel: BTF, struct layout, drop reasons, symbols, capabilities |
//! | [`features`] | `fwtrace features`: what this machine allows, and what the missing costs |
//! | [`netlink`] | sockets and codecs: bytes <-> structs, no policy |
//! | [`ruleset`] | the model, per-netns snapshots by generation, rendering in nft syntax |
//! | [`xtables`] | legacy tables; matches and targets of both iptables; iptables-save syntax |
//! | [`eval`] | pure: ruleset + packet -> the walk, the verdict, the nearest miss |
//! | [`expr`] | tcpdump's filter expressions: libpcap's program, run on a captured packet |
//! | [`attribute`] | drop record + ruleset -> attributed event |
//! | [`trace`] | `--trace`: the kernel's own word on a packet's way, joined with its drop |
//! | [`conntrack`] | the table of connections: how full it is, what it counts, single connections |
//! | [`explain`] | why a packet was dropped that no rule dropped: the sysctl, socket or route |
//! | [`packet`] | captured bytes -> packet summary |
//! | [`event`] | the one public event type, versioned |
//! | [`output`] | text, JSON lines, the summary |
//! | [`pcapng`] | drops and their packets to files that Wireshark reads, and back |
//! | [`extcap`] | `fwtrace extcap`: an interface in Wireshark's list |
//! | [`netns`] | network namespaces: find, name, enter |
//! | [`nflog`] | logged packets, and the rules that log them |
//! | [`pipeline`] | the live run: sources, attribution, output, shutdown |
//! | [`demo`] | namespaces of its own, a broken firewall, real traffic |

mod allowance;
pub mod attribute;
pub mod bpf;
pub mod cli;
pub mod conntrack;
pub mod demo;
pub mod eval;
pub mod event;
pub mod explain;
pub mod expr;
pub mod extcap;
pub mod features;
pub mod kernel;
pub mod netlink;
pub mod netns;
pub mod nflog;
pub mod output;
pub mod packet;
pub mod pcapng;
pub mod pipeline;
pub mod ruleset;
pub mod trace;
pub mod xtables;
