//! In which order the base chains of a hook come, and what they can do.

use super::{
    code::{Decided, Op},
    headers::NETDEV,
    outcome::{Fate, TableId},
    packet::{Device, Packet},
    program::{Base, Chain, Hook, HookKey, Program},
    sets::Gives,
    write::{self, Kinds},
};
use crate::{ruleset::model::Ruleset, xtables::legacy::Table};

/// The most orders of chains with equal priorities that are tried.
const MAX_ORDERS: usize = 24;

/// What a hook calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Called {
    /// A base chain of nf_tables.
    Nft {
        /// The handle of its table.
        table: u64,
        /// Its handle.
        chain: u64,
    },
    /// A table of ip_tables or ip6_tables.
    Legacy {
        /// The table's name.
        table: String,
    },
    /// Connection tracking begins.
    Tracking,
    /// Addresses are translated; the chains of type nat follow.
    Translation,
}

/// A hook with base chains of which it is not known, and matters, which comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tie<'a> {
    /// Its family, `NFPROTO_*`.
    pub pf: u8,
    /// Its number in that family.
    pub hook: u8,
    /// Of family netdev: the device, each of which has a list of its own.
    pub device: Option<Device<'a>>,
}

impl Program {
    /// The packet's hook, if that is one.
    pub fn tie<'a>(&self, packet: &Packet<'a>) -> Option<Tie<'a>> {
        if !self.tied {
            return None;
        }
        let key = HookKey::of(packet);
        let hook = self.hook(packet)?;
        let (pf, number) = key.numbers();
        let device = match pf {
            NETDEV => Some(key.device(packet)?),
            _ => None,
        };
        is_tied(key, hook).then_some(Tie {
            pf,
            hook: number,
            device,
        })
    }

    /// Takes over the order in which the kernel calls the base chains of the hook, if it calls exactly those of these rulesets, which the
    /// program was made of. If not, nothing changes.
    pub fn arrange(
        &mut self,
        tie: &Tie<'_>,
        calls: &[Called],
        nft: Option<&Ruleset>,
        legacy: &[Table],
    ) {
        let key = HookKey::new(tie.pf, tie.hook);
        let Some(mut hook) = self.hooks.get(&key).cloned() else {
            return;
        };
        if let Some(device) = tie.device {
            hook.bases.retain(|base| base.is_on(device.name.as_bytes()));
        }
        let places: Option<Vec<usize>> = hook
            .bases
            .iter()
            .map(|base| {
                let called = called(base, nft, legacy)?;
                calls.iter().position(|call| *call == called)
            })
            .collect();
        let Some(places) = places else { return };
        let mut sorted: Vec<_> = places.iter().zip(&hook.bases).collect();
        sorted.sort_by_key(|(place, _)| **place);
        let chains = calls
            .iter()
            .filter(|call| matches!(call, Called::Nft { .. } | Called::Legacy { .. }));
        // Each once, and by their priorities: chains of type nat are called from one place.
        let complete = sorted.len() == chains.count()
            && sorted.is_sorted_by(|(a, _), (b, _)| a < b)
            && sorted.is_sorted_by_key(|(_, base)| base.rank().0);
        if !complete {
            return;
        }
        let at = |wanted| calls.iter().position(|call| *call == wanted);
        let (tracking, translation) = (at(Called::Tracking), at(Called::Translation));
        for (base, place) in hook.bases.iter_mut().zip(places) {
            base.place = Some(place);
            if let (true, Some(tracking)) = (base.with_tracking, tracking) {
                base.with_tracking = false;
                base.early = place < tracking;
            }
            if let (true, Some(translation)) = (is_with_translation(key, base), translation) {
                base.before_nat = place < translation;
            }
        }
        self.order(&mut hook);
        match tie.device {
            Some(device) => {
                let of = (tie.hook, device.index);
                self.devices.insert(of, (device.name.to_owned(), hook));
            }
            None => {
                self.hooks.insert(key, hook);
                self.find_ties();
            }
        }
    }

    /// Finds out whether there is a hook with [`Tie`]s.
    pub(super) fn find_ties(&mut self) {
        self.tied = self.hooks.iter().any(|(key, hook)| is_tied(*key, hook));
    }

    /// Sorts a hook's chains by priority, and finds the orders that those of equal priority can be in.
    pub(super) fn order(&self, hook: &mut Hook) {
        hook.unordered = false;
        if hook.bases.iter().all(|base| base.place.is_some()) {
            hook.bases.sort_by_key(|base| base.place);
            hook.orders = vec![(0..hook.bases.len()).collect()];
            return;
        }
        // What is registered later comes first (`nf_hook_entries_grow()`); within a table the handles tell.
        hook.bases
            .sort_by_key(|base| (base.rank(), base.id.table, std::cmp::Reverse(base.id.chain)));
        let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
        let mut at = 0;
        while let Some(first) = hook.bases.get(at) {
            let same = hook.bases[at..]
                .iter()
                .take_while(|base| base.rank() == first.rank())
                .count();
            let group: Vec<usize> = (at..at + same).collect();
            at += same;
            // Groups of one table, newest table first. A chain that has been given a device later comes first there.
            let bases = || group.iter().filter_map(|index| hook.bases.get(*index));
            let shares = |base: &Base| bases().any(|other| other.shares_device(base));
            let mut tables: Vec<Vec<usize>> = group
                .chunk_by(|a, b| match (hook.bases.get(*a), hook.bases.get(*b)) {
                    (Some(a), Some(b)) => a.id.table == b.id.table && !shares(a) && !shares(b),
                    _ => false,
                })
                .map(<[usize]>::to_vec)
                .collect();
            tables.reverse();
            let matters = tables
                .iter()
                .filter(|chains| {
                    let bases = chains.iter().filter_map(|index| hook.bases.get(*index));
                    self.can_matter(bases.map(|base| base.chain))
                })
                .count();
            let arranged = if matters > 1 && tables.len() <= 4 {
                permutations(tables)
            } else {
                hook.unordered |= matters > 1;
                vec![tables.concat()]
            };
            if orders.len() * arranged.len() > MAX_ORDERS {
                hook.unordered = true;
                for order in &mut orders {
                    order.extend(arranged.first().into_iter().flatten());
                }
                continue;
            }
            orders = orders
                .iter()
                .flat_map(|order| {
                    arranged
                        .iter()
                        .map(|group| [order.as_slice(), group].concat())
                })
                .collect();
        }
        hook.orders = orders;
    }

    /// Whether the chains can end a packet's way or change it.
    fn can_matter(&self, chains: impl Iterator<Item = u32>) -> bool {
        let (reached, by_map) = self.reachable(chains);
        by_map
            || reached.iter().any(|chain| {
                let chain = self.chains.get(*chain as usize);
                chain.is_some_and(|chain| chain.policy == Some(Fate::Drop))
                    || self.chain_ops(chain).iter().any(|op| match op {
                        Op::Verdict(Decided::End(fate)) => *fate != Fate::Accept,
                        Op::Verdict(Decided::Unknown(_))
                        | Op::Action(_)
                        | Op::Match(_)
                        | Op::Synproxy { .. }
                        | Op::Write { .. }
                        | Op::Assign(_)
                        | Op::Dynset { .. } => true,
                        _ => false,
                    })
            })
    }

    fn chain_ops(&self, chain: Option<&Chain>) -> &[Op] {
        let Some(chain) = chain else { return &[] };
        let start = chain.rules.first().map_or(chain.end, |rule| rule.start);
        self.ops
            .get(start as usize..chain.end as usize)
            .unwrap_or_default()
    }

    /// The chains that can be come to from these, and whether a map with verdicts that end the way is among their rules.
    pub(super) fn reachable(&self, from: impl Iterator<Item = u32>) -> (Vec<u32>, bool) {
        let mut todo: Vec<u32> = from.collect();
        let mut seen = Vec::new();
        let mut by_map = false;
        while let Some(chain) = todo.pop() {
            if seen.contains(&chain) {
                continue;
            }
            seen.push(chain);
            for op in self.chain_ops(self.chains.get(chain as usize)) {
                match op {
                    Op::Verdict(Decided::Jump(to) | Decided::Goto(to)) => todo.push(*to),
                    Op::Lookup {
                        set, verdict: true, ..
                    } => {
                        let set = self.sets.get(*set as usize);
                        for entry in set.iter().flat_map(|set| &set.entries) {
                            match &entry.gives {
                                Gives::Verdict(Decided::Jump(to) | Decided::Goto(to)) => {
                                    todo.push(*to);
                                }
                                Gives::Verdict(Decided::End(Fate::Accept)) => {}
                                _ => by_map = true,
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        (seen, by_map)
    }

    pub(super) fn writes(&self, chain: u32) -> Kinds {
        self.chain_ops(self.chains.get(chain as usize))
            .iter()
            .map(|op| match op {
                Op::Write { field, .. } => write::kind(field),
                Op::Assign(assigned) => write::kind(&assigned.0),
                Op::Action(action) => action
                    .writes()
                    .iter()
                    .map(write::kind)
                    .fold(0, |a, b| a | b),
                _ => 0,
            })
            .fold(0, |a, b| a | b)
    }
}

/// Whether it is not known, and matters, in which order the hook calls its chains.
fn is_tied(key: HookKey, hook: &Hook) -> bool {
    let placed = hook.bases.iter().all(|base| base.place.is_some());
    let translates = hook.bases.iter().any(|base| base.nat.is_some());
    let unclear =
        |base: &Base| base.with_tracking || (translates && is_with_translation(key, base));
    !placed && (hook.unordered || hook.orders.len() > 1 || hook.bases.iter().any(unclear))
}

/// Whether it has the priority at which the hook translates addresses.
fn is_with_translation(key: HookKey, base: &Base) -> bool {
    base.nat.is_none() && key.translates() == Some(base.priority)
}

/// What the kernel calls for a base chain.
fn called(base: &Base, nft: Option<&Ruleset>, legacy: &[Table]) -> Option<Called> {
    Some(match base.id.table {
        TableId::Nft(index) => {
            let table = nft?.tables.get(index as usize)?;
            Called::Nft {
                table: table.handle,
                chain: table.chains.get(base.id.chain as usize)?.handle,
            }
        }
        TableId::Legacy(index) => Called::Legacy {
            table: legacy.get(index as usize)?.name.clone(),
        },
    })
}

/// Every order of these groups.
fn permutations(groups: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    if groups.len() <= 1 {
        return vec![groups.concat()];
    }
    let mut all = Vec::new();
    for first in 0..groups.len() {
        let mut rest = groups.clone();
        let head = rest.remove(first);
        for tail in permutations(rest) {
            all.push([head.as_slice(), &tail].concat());
        }
    }
    all
}
