//! In which order the base chains of a hook come, and what they can do.

use super::{
    code::{Decided, Op},
    outcome::Fate,
    program::{Chain, Hook, Program},
    sets::Gives,
    write::{self, Kinds},
};

/// The most orders of chains with equal priorities that are tried.
const MAX_ORDERS: usize = 24;

impl Program {
    /// Sorts a hook's chains by priority, and finds the orders that those of equal priority can be in.
    pub(super) fn order(&self, hook: &mut Hook) {
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
            // Groups of one table, newest table first.
            let mut tables: Vec<Vec<usize>> = group
                .chunk_by(|a, b| {
                    let table = |index: &usize| hook.bases.get(*index).map(|base| base.id.table);
                    table(a) == table(b)
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
