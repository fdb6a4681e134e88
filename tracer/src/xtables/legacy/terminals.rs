//! The entries of a table that can drop a packet, by hook.
//!
//! The kernel counts a packet at an entry when all its matches held (`ipt_do_table()`, net/ipv4/netfilter/ip_tables.c, v6.18), so of the
//! entries that can drop, the one whose counter has moved did. Where one that always drops has moved, those that only sometimes do have
//! nothing to say: the packet went on behind them. Two drops leave no such trace: a match that gives up on a broken header
//! (`par->hotdrop`: tcp, udp, sctp, multiport, hashlimit, ...) drops before its entry counts, and so does a jump deeper than the stack.

use super::{Jump, Table};
use crate::xtables::targets::Target;

/// `NF_INET_LOCAL_OUT` and `NF_INET_POST_ROUTING` (include/uapi/linux/netfilter.h, v6.18).
const LOCAL: [u8; 2] = [3, 4];

/// Targets that let every packet go on, by name.
const GO_ON: [&str; 19] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "SECMARK",
    "SET",
    "TEE",
    "TRACE",
    "ULOG",
];

/// An entry that can drop a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// The entry's offset in the blob, the same in the kernel's copy.
    pub offset: u32,
    /// Index into [`Table::chains`].
    pub chain: usize,
    /// Index into [`Chain::rules`](super::Chain::rules); `None`: the chain's policy.
    pub rule: Option<usize>,
    /// Whether it drops all packets that it counts.
    pub drops: Drops,
    /// It is reached from OUTPUT or POSTROUTING too: it counts packets of processes, which may be interrupted between counter and drop.
    pub local: bool,
}

/// What becomes of the packets that an entry counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drops {
    /// All are dropped: DROP, REJECT, a policy that drops. Its counter has moved: it dropped.
    Always,
    /// Some may be: NFQUEUE without a listener, TPROXY without a socket, NAT without a free tuple, a target that cannot write to the
    /// packet, one that is not known. Its counter moves for packets that go on, too: alone, it proves nothing.
    Sometimes,
}

impl Table {
    /// The entries that can drop a packet on this hook (`NF_INET_*`), in the order of the blob: rules and policies of the chain on the
    /// hook and of all chains that can be reached from it through jumps and gotos.
    pub fn terminals(&self, hook: u8) -> Vec<Terminal> {
        let reached = self.reached(&[hook]);
        let local = self.reached(&LOCAL);
        let mut terminals = Vec::new();
        for (index, chain) in self.chains.iter().enumerate() {
            if !is_set(&reached, index) {
                continue;
            }
            let terminal = |offset, rule, jump: &Jump| {
                drops(jump).map(|drops| Terminal {
                    offset,
                    chain: index,
                    rule,
                    drops,
                    local: is_set(&local, index),
                })
            };
            let rules = chain.rules.iter().enumerate();
            terminals
                .extend(rules.filter_map(|(n, rule)| terminal(rule.offset, Some(n), &rule.jump)));
            let base = chain.base.iter();
            terminals.extend(base.filter_map(|base| terminal(base.offset, None, &base.policy)));
        }
        terminals
    }

    /// For each chain, whether it can be reached from one of these hooks.
    fn reached(&self, hooks: &[u8]) -> Vec<bool> {
        let mut reached = vec![false; self.chains.len()];
        let first = hooks
            .iter()
            .filter_map(|hook| self.hooks.get(usize::from(*hook)));
        let mut next: Vec<usize> = first.copied().flatten().collect();
        while let Some(index) = next.pop() {
            let Some(seen) = reached.get_mut(index) else {
                continue;
            };
            if std::mem::replace(seen, true) {
                continue;
            }
            let rules = self.chains.get(index).map_or(&[][..], |chain| &chain.rules);
            next.extend(rules.iter().filter_map(|rule| match rule.jump {
                Jump::Chain(chain) | Jump::Goto(chain) => Some(chain),
                _ => None,
            }));
        }
        reached
    }
}

fn is_set(flags: &[bool], index: usize) -> bool {
    flags.get(index).copied().unwrap_or_default()
}

/// Whether what an entry does can drop a packet.
fn drops(jump: &Jump) -> Option<Drops> {
    match jump {
        Jump::Drop => Some(Drops::Always),
        Jump::Queue => Some(Drops::Sometimes),
        Jump::Next | Jump::Accept | Jump::Return | Jump::Chain(_) | Jump::Goto(_) => None,
        Jump::Target(target) => target_drops(target),
    }
}

fn target_drops(target: &Target) -> Option<Drops> {
    match target {
        Target::Reject(_) => Some(Drops::Always),
        // `XT_CONTINUE` is all they return (net/netfilter/xt_*.c, v6.18).
        Target::Audit(_)
        | Target::Checksum(_)
        | Target::Classify(_)
        | Target::Connmark(_)
        | Target::Connsecmark(_)
        | Target::Ct(_)
        | Target::Hmark(_)
        | Target::Idletimer(_)
        | Target::Led(_)
        | Target::Log(_)
        | Target::Mark(_)
        | Target::Nflog(_)
        | Target::Rateest(_)
        | Target::Secmark(_)
        | Target::Set(_)
        | Target::Tee(_)
        | Target::Trace => None,
        // Of a size or revision that is not known, but its name says enough.
        Target::Unknown { name, .. } => match name.as_str() {
            "REJECT" => Some(Drops::Always),
            name if GO_ON.contains(&name) => None,
            _ => Some(Drops::Sometimes),
        },
        _ => Some(Drops::Sometimes),
    }
}
