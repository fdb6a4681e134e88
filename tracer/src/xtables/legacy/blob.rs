//! `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`: bytes -> [`Table`]. Total: no bytes make it panic.
//!
//! The blob is a row of entries (`struct ipt_entry`, `struct ip6t_entry`), each with its matches and one target behind it, in the byte
//! order of the machine (include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h, netfilter/x_tables.h, v6.18).
//! The kernel knows rules and jumps by offset only. What makes chains of them is a convention with user space:
//!
//! ```text
//! hook_entry[INPUT]  -> rule ... rule, policy    <- underflow[INPUT]
//! hook_entry[OUTPUT] -> rule ... rule, policy    <- underflow[OUTPUT]
//! ERROR "name"          the head of a user chain
//!                       rule ... rule, RETURN    the tail: no rule, and not numbered
//! ERROR "ERROR"         the end of the table
//! ```
//!
//! A jump goes to the entry behind the head. A rule without a target jumps to the entry behind itself.

use std::collections::HashMap;

use super::{
    Base, Chain, Family, Jump, Rule, Table,
    entry::{Entry, Layout, Verdict},
};
use crate::ruleset::model::Counters;

/// The built-in chains, by the number of their hook (`NF_INET_*`, include/uapi/linux/netfilter.h, v6.18).
pub const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// `XT_ERROR_TARGET` (include/uapi/linux/netfilter/x_tables.h, v6.18): the target of heads, and the name of the last one.
const ERROR: &str = "ERROR";

/// `struct ipt_getinfo`, which is `struct ip6t_getinfo` too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Info {
    /// Bit n: the table has a chain on hook n (`NF_INET_*`).
    pub valid_hooks: u32,
    /// Offset of the first entry of each hook's chain.
    pub hook_entry: [u32; 5],
    /// Offset of the policy entry of each hook's chain.
    pub underflow: [u32; 5],
    /// Number of entries: rules, policies, heads and tails of chains.
    pub num_entries: u32,
    /// Bytes of all entries.
    pub size: u32,
}

impl Info {
    /// `sizeof(struct ipt_getinfo)`: a name of 32 bytes, then 13 integers of 32 bits.
    pub const SIZE: usize = 84;
    const NAME: usize = 32;

    /// Decodes what `IPT_SO_GET_INFO` gave; `None` if it is too short.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let numbers = bytes.get(Self::NAME..Self::SIZE)?;
        let mut numbers = numbers
            .chunks_exact(4)
            .filter_map(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
        let mut next = || numbers.next();
        Some(Self {
            valid_hooks: next()?,
            hook_entry: [next()?, next()?, next()?, next()?, next()?],
            underflow: [next()?, next()?, next()?, next()?, next()?],
            num_entries: next()?,
            size: next()?,
        })
    }

    /// Hooks that have a chain, with where it begins and its policy.
    fn hooks(&self) -> impl Iterator<Item = (u8, u32, u32)> {
        let offsets = self.hook_entry.into_iter().zip(self.underflow);
        (0_u8..)
            .zip(offsets)
            .filter(|(hook, _)| self.valid_hooks & 1 << hook != 0)
            .map(|(hook, (entry, underflow))| (hook, entry, underflow))
    }
}

/// Makes a table of what the kernel gave. What is broken costs what [`Table::problems`] names.
pub fn parse(family: Family, name: &str, info: &Info, blob: &[u8]) -> Table {
    let mut parser = Parser::new(family, name, info);
    parser.run(info, blob);
    parser.resolve();
    parser.table
}

/// Whether two blobs hold the same entries, whatever these have counted: what else differs only differs after a replacement. (The kernel
/// leaves its own state out of what it gives of matches and targets: `xt_data_to_user()`, net/netfilter/x_tables.c, v6.18.)
pub(super) fn is_same(family: Family, a: &[u8], b: &[u8]) -> bool {
    let layout = Layout::of(family);
    let mut at = 0;
    while let (Some(rest), Some(other)) = (a.get(at..), b.get(at..)) {
        let next = layout.next(rest).filter(|next| *next <= rest.len());
        let Some(next) = next else {
            return rest == other;
        };
        let behind = layout.size..next;
        if rest.get(..layout.counters) != other.get(..layout.counters)
            || rest.get(behind.clone()) != other.get(behind)
        {
            return false;
        }
        at += next;
    }
    false
}

/// Where each entry begins.
pub(super) fn offsets(family: Family, blob: &[u8]) -> Vec<u32> {
    let layout = Layout::of(family);
    let mut offsets = Vec::new();
    let mut at = 0;
    while let Some(rest) = blob.get(at..) {
        let next = layout.next(rest).filter(|next| *next <= rest.len());
        let (Some(next), Ok(offset)) = (next, u32::try_from(at)) else {
            break;
        };
        offsets.push(offset);
        at += next;
    }
    offsets
}

/// A rule whose jump is not resolved yet.
struct Pending {
    chain: usize,
    rule: usize,
    /// Where it jumps to, and whether that is a goto.
    target: u32,
    goto: bool,
}

struct Parser {
    table: Table,
    layout: &'static Layout,
    /// The chain that entries go into: index, and where its policy is if it is a built-in one.
    open: Option<(usize, Option<u32>)>,
    /// First entry of each chain -> its index.
    starts: HashMap<u32, usize>,
    pending: Vec<Pending>,
}

impl Parser {
    fn new(family: Family, name: &str, info: &Info) -> Self {
        Self {
            table: Table {
                family,
                name: name.to_owned(),
                chains: Vec::new(),
                hooks: [None; 5],
                size: info.size,
                entries: info.num_entries,
                problems: Vec::new(),
            },
            layout: Layout::of(family),
            open: None,
            starts: HashMap::new(),
            pending: Vec::new(),
        }
    }

    fn problem(&mut self, what: impl std::fmt::Display) {
        let name = &self.table.name;
        self.table.problems.push(format!("table {name}: {what}"));
    }

    fn run(&mut self, info: &Info, blob: &[u8]) {
        if usize::try_from(info.size) != Ok(blob.len()) {
            let (stated, len) = (info.size, blob.len());
            self.problem(format!(
                "{stated} bytes of entries are stated, {len} were read"
            ));
        }
        let mut rest = blob;
        let mut offset = 0_u32;
        let mut count = 0_u32;
        while !rest.is_empty() {
            let split = self
                .layout
                .next(rest)
                .and_then(|n| rest.split_at_checked(n));
            let Some((bytes, behind)) = split else {
                self.problem(format!(
                    "the entry at offset {offset} has an impossible length: it and all behind it cannot be read"
                ));
                break;
            };
            self.entry(info, offset, bytes, behind.is_empty());
            let next = u32::try_from(bytes.len()).ok();
            let Some(next) = next.and_then(|len| offset.checked_add(len)) else {
                break;
            };
            offset = next;
            count += 1;
            rest = behind;
        }
        self.close();
        if count != info.num_entries {
            let stated = info.num_entries;
            self.problem(format!("{stated} entries are stated, {count} were read"));
        }
        for (hook, start, underflow) in info.hooks() {
            let Some(name) = HOOKS.get(usize::from(hook)) else {
                continue;
            };
            let chain = self.starts.get(&start).copied();
            let chain = chain.and_then(|index| self.table.chains.get(index));
            match chain.and_then(|chain| chain.base.as_ref()) {
                Some(base) if base.hook == hook && base.offset == underflow => {}
                Some(base) if base.hook == hook => self.problem(format!(
                    "the policy of chain {name} is not where it should be, at offset {underflow}"
                )),
                _ => self.problem(format!("chain {name} does not begin at offset {start}")),
            }
        }
    }

    /// One entry; `last`: the table ends behind it.
    fn entry(&mut self, info: &Info, offset: u32, bytes: &[u8], last: bool) {
        let (entry, problem) = Entry::decode(self.table.family, bytes);
        if let Some(problem) = problem {
            self.problem(format!("entry at offset {offset}: {problem}"));
        }
        let built_in = info.hooks().find(|(_, start, _)| *start == offset);
        if let Some((hook, _, underflow)) = built_in {
            self.close();
            let name = HOOKS.get(usize::from(hook)).copied().unwrap_or_default();
            let base = Base {
                hook,
                policy: Jump::Next,
                offset: underflow,
                counters: Counters::default(),
            };
            self.begin(name.to_owned(), Some(base), offset);
        } else if let Some(name) = entry.error() {
            self.close();
            if !(last && name == ERROR) {
                let len = u32::try_from(bytes.len()).unwrap_or_default();
                self.begin(name.to_owned(), None, offset.saturating_add(len));
            }
            return;
        }
        let Some((index, underflow)) = self.open else {
            self.problem(format!("the entry at offset {offset} is in no chain"));
            return;
        };
        let len = u32::try_from(bytes.len()).unwrap_or_default();
        let (jump, pending) = jump(&entry, offset.saturating_add(len));
        let Some(chain) = self.table.chains.get_mut(index) else {
            return;
        };
        if underflow == Some(offset) {
            if let Some(base) = &mut chain.base {
                base.counters = entry.counters;
                base.policy = jump;
            }
            self.open = None;
            if !matches!(entry.verdict(), Some(Verdict::Accept | Verdict::Drop)) {
                self.problem(format!(
                    "the policy at offset {offset} is neither ACCEPT nor DROP"
                ));
            }
            return;
        }
        if let Some((target, goto)) = pending {
            self.pending.push(Pending {
                chain: index,
                rule: chain.rules.len(),
                target,
                goto,
            });
        }
        let number = u32::try_from(chain.rules.len()).unwrap_or(u32::MAX);
        chain.rules.push(Rule {
            number: number.saturating_add(1),
            offset,
            ip: entry.ip,
            matches: entry.matches,
            jump,
            counters: entry.counters,
        });
    }

    /// Opens a chain whose first entry is at `start`.
    fn begin(&mut self, name: String, base: Option<Base>, start: u32) {
        let index = self.table.chains.len();
        if let Some(base) = &base
            && let Some(slot) = self.table.hooks.get_mut(usize::from(base.hook))
        {
            *slot = Some(index);
        }
        self.open = Some((index, base.as_ref().map(|base| base.offset)));
        self.starts.insert(start, index);
        self.table.chains.push(Chain {
            name,
            base,
            rules: Vec::new(),
        });
    }

    /// Ends the open chain. A built-in one should have ended with its policy; a user chain's last entry is its tail.
    fn close(&mut self) {
        let Some((index, underflow)) = self.open.take() else {
            return;
        };
        let Some(chain) = self.table.chains.get_mut(index) else {
            return;
        };
        let name = chain.name.clone();
        if underflow.is_some() {
            self.problem(format!("chain {name} ends without a policy"));
        } else if chain.rules.last().is_some_and(Rule::is_tail) {
            chain.rules.pop();
        } else {
            self.problem(format!("chain {name} does not end with RETURN"));
        }
    }

    /// Now that all chains are known: offsets of jumps -> chains.
    fn resolve(&mut self) {
        for jump in std::mem::take(&mut self.pending) {
            let rules = self.table.chains.get_mut(jump.chain);
            let Some(rule) = rules.and_then(|chain| chain.rules.get_mut(jump.rule)) else {
                continue;
            };
            match self.starts.get(&jump.target) {
                Some(&chain) if jump.goto => rule.jump = Jump::Goto(chain),
                Some(&chain) => rule.jump = Jump::Chain(chain),
                None => {
                    let offset = rule.offset;
                    let target = jump.target;
                    self.problem(format!(
                        "the rule at offset {offset} jumps to offset {target}, where no chain begins"
                    ));
                }
            }
        }
    }
}

/// What an entry does; where it jumps to and whether that is a goto, if it jumps. `behind`: where the next entry is.
fn jump(entry: &Entry, behind: u32) -> (Jump, Option<(u32, bool)>) {
    match entry.verdict() {
        Some(Verdict::Accept) => (Jump::Accept, None),
        Some(Verdict::Drop) => (Jump::Drop, None),
        Some(Verdict::Queue) => (Jump::Queue, None),
        Some(Verdict::Return) => (Jump::Return, None),
        Some(Verdict::To(target)) if target == behind => (Jump::Next, None),
        // Kept as it is where it leads to no chain.
        Some(Verdict::To(target)) => (
            Jump::Target(entry.target.clone()),
            Some((target, entry.is_goto)),
        ),
        None => (Jump::Target(entry.target.clone()), None),
    }
}
