//! Telling the BPF programs about legacy tables: which entries drop, where their counters are, and
//! what these are now.

use std::{collections::BTreeMap, ops::Range};

use aya::util::online_cpus;
use fwtrace_abi::{
    ABSENT, ANSWERS, ANY_HOOK, BLOCK, Block, FIND_CHANGED, FIND_ELSEWHERE, FIND_NO_TABLE, FIND_OK,
    GROUP, Layout, PRIME_BUSY, PRIME_OK, PRIME_REPLACED, QUEUED, Search, TABLE_BLOCKS, TABLE_NAME,
    TABLES, TableRef, Tables, TablesKey, TerminalRef,
};

use super::load::{BpfError, Programs};
use crate::{
    netns::{self, NetNs},
    xtables::{
        Family,
        legacy::{Drops, Jump, Table, Terminal, read::Raw},
    },
};

/// Maps with an entry for each block of counters.
pub const BLOCK_MAPS: [&str; 3] = ["LEGACY_BLOCKS", "LEGACY_COUNTS", "LEGACY_STATE"];
/// Bytes that the images of all blocks may take together, on all CPUs.
const MEMORY: u32 = 8 * 1024 * 1024;
/// Blocks that there are at least and at the most.
const BLOCKS: Range<u32> = 128..1024;
/// Bytes of a block's image.
const IMAGE: u32 = 4096;
/// How often a CPU is asked to take its image before it is given up for dropping all the time.
const TRIES: usize = 64;
/// `offsetof(struct ipt_entry, counters)`, and of ip6t_entry (include/uapi/linux/netfilter_ipv4/ip_tables.h,
/// netfilter_ipv6/ip6_tables.h, v6.18).
const COUNTERS: (u32, u32) = (96, 152);
// NFPROTO_* (include/uapi/linux/netfilter.h, v6.18).
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;

/// How many blocks the maps are made for.
pub(super) fn blocks(layout: &Layout) -> u32 {
    if layout.xt_private == ABSENT {
        return 1;
    }
    let cpus = aya::util::nr_cpus()
        .ok()
        .and_then(|n| u32::try_from(n).ok());
    (MEMORY / IMAGE / cpus.unwrap_or(1).max(1)).clamp(BLOCKS.start, BLOCKS.end)
}

/// Why the rules of a table will not be told by their counters.
#[derive(Debug, thiserror::Error)]
pub enum PrimeError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// BPF.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The table has been replaced since it was read.
    #[error("it has just been replaced")]
    Replaced,
    /// Not on the list of a hook: nat, or a namespace that is being taken down.
    #[error("it is not called by any hook")]
    NotHooked,
    /// Too large, or too many tables.
    #[error(
        "its {terminals} rules that drop need {blocks} blocks of counters, and {free} are free"
    )]
    Full {
        /// Entries that drop.
        terminals: usize,
        /// Blocks that they are in.
        blocks: usize,
        /// Blocks in a row that there are for it.
        free: usize,
    },
    /// The counters are somewhere else.
    #[error(
        "this kernel keeps its counters in another way; on a machine with one processor it does"
    )]
    Strange,
    /// Drops all the time, or no such CPU.
    #[error("the counters of processor {0} could not be read")]
    Cpu(u32),
}

/// A table that is primed: what its id means.
#[derive(Debug)]
struct Primed {
    /// In `LEGACY_TABLES`.
    reference: TableRef,
    blocks: Range<u32>,
}

/// The tables whose drops are told by their counters.
#[derive(Debug)]
pub struct Counters {
    /// Which blocks are in use.
    used: Vec<bool>,
    primed: BTreeMap<(u32, u32, String), Primed>,
    last: u32,
    /// Of what was published.
    version: u32,
}

impl Counters {
    /// Attaches `legacy` in the place of `anchor`; `drops` must be attached behind it.
    ///
    /// # Errors
    /// The verifier's.
    pub fn new(programs: &mut Programs, layout: &Layout) -> Result<Self, BpfError> {
        programs.load_runnable("legacy_find")?;
        programs.load_runnable("legacy_prime")?;
        programs.attach("legacy")?;
        programs.detach("anchor")?;
        Ok(Self {
            used: vec![false; blocks(layout) as usize],
            primed: BTreeMap::new(),
            last: 0,
            version: 0,
        })
    }

    /// Tells the programs about a table, in place of what they knew of it; from now on its drops come
    /// with the number that this returns. `None`: none of its rules drops.
    ///
    /// `queues`: some table of the namespace hands packets to user space, which may give them back.
    /// That the table is still the one that was read is only known once it has been read again.
    ///
    /// # Errors
    /// See [`PrimeError`]. Then its drops are not told by their counters.
    pub fn prime(
        &mut self,
        programs: &mut Programs,
        netns: &NetNs,
        raw: &Raw,
        table: &Table,
        queues: bool,
    ) -> Result<Option<u32>, PrimeError> {
        let key = (netns.inode(), protocol(raw.family), raw.name.clone());
        let terminals = Terminals::of(table, &raw.offsets(), queues);
        let old = self.primed.remove(&key);
        let mut result = Ok(None);
        if !terminals.refs.is_empty() {
            result = self.replace(programs, netns, raw, &terminals).map(Some);
        }
        let new = match &result {
            Ok(Some(primed)) => Some(primed.reference),
            _ => None,
        };
        self.publish(programs, &key, new)?;
        if let Some(old) = old {
            self.release(programs, &old)?;
        }
        let Some(primed) = result? else {
            return Ok(None);
        };
        let id = primed.reference.id;
        self.primed.insert(key, primed);
        self.image(programs, id)?;
        Ok(Some(id))
    }

    /// Forgets all tables of a namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget(&mut self, programs: &mut Programs, netns: u32) -> Result<(), BpfError> {
        let gone: Vec<_> = self
            .primed
            .keys()
            .filter(|(inode, ..)| *inode == netns)
            .cloned()
            .collect();
        for key in gone {
            self.publish(programs, &key, None)?;
            if let Some(primed) = self.primed.remove(&key) {
                self.release(programs, &primed)?;
            }
        }
        Ok(())
    }

    /// Finds the table in the kernel, and sets blocks aside for it.
    fn replace(
        &mut self,
        programs: &mut Programs,
        netns: &NetNs,
        raw: &Raw,
        terminals: &Terminals,
    ) -> Result<Primed, PrimeError> {
        let full = |free| PrimeError::Full {
            terminals: terminals.refs.len(),
            blocks: terminals.blocks.len(),
            free,
        };
        if terminals.blocks.len() > TABLE_BLOCKS as usize {
            return Err(full(TABLE_BLOCKS as usize));
        }
        let blocks = self.take(terminals.blocks.len()).map_err(full)?;
        match self.find(programs, netns, raw, terminals, &blocks) {
            Ok(reference) => Ok(Primed { reference, blocks }),
            Err(error) => {
                self.give_back(&blocks);
                Err(error)
            }
        }
    }

    fn find(
        &mut self,
        programs: &mut Programs,
        netns: &NetNs,
        raw: &Raw,
        terminals: &Terminals,
        blocks: &Range<u32>,
    ) -> Result<TableRef, PrimeError> {
        let mut name = [0; TABLE_NAME];
        for (to, from) in name.iter_mut().zip(raw.name.bytes()) {
            *to = from;
        }
        let search = Search {
            netns: netns.inode(),
            pf: protocol(raw.family),
            name,
            size: raw.info.size,
            number: raw.info.num_entries,
            counters: match raw.family {
                Family::V4 => COUNTERS.0,
                Family::V6 => COUNTERS.1,
            },
            terminals: u32::try_from(terminals.refs.len()).unwrap_or(0),
            first: blocks.start,
            blocks: blocks.end - blocks.start,
            status: FIND_NO_TABLE,
            pad: 0,
            table: 0,
            private: 0,
            net: 0,
        };
        programs.set_elements("LEGACY_BLOCKS", blocks.start, &terminals.blocks)?;
        programs.set_elements("LEGACY_TERMINALS", 0, &terminals.refs)?;
        programs.set_elements("LEGACY_SEARCH", 0, &[search])?;
        // The program looks at the netns of the thread that runs it.
        netns.run(|| programs.run("legacy_find", 0, None))??;
        let found: Search = programs.element("LEGACY_SEARCH", 0)?;
        match found.status {
            FIND_OK => {}
            FIND_NO_TABLE => return Err(PrimeError::NotHooked),
            FIND_CHANGED | FIND_ELSEWHERE => return Err(PrimeError::Replaced),
            _ => return Err(PrimeError::Strange),
        }
        self.last += 1;
        Ok(TableRef {
            table: found.table,
            private: found.private,
            id: self.last,
            first: blocks.start,
            blocks: search.blocks,
            hooks: terminals.hooks,
        })
    }

    /// Has every CPU take its image of the table that was found last.
    fn image(&mut self, programs: &mut Programs, id: u32) -> Result<(), PrimeError> {
        for cpu in cpus() {
            let mut tries = TRIES;
            loop {
                match on_cpu(programs, id, cpu)? {
                    PRIME_OK => break,
                    PRIME_BUSY if tries > 0 => tries -= 1,
                    PRIME_REPLACED => return Err(PrimeError::Replaced),
                    _ => return Err(PrimeError::Cpu(cpu)),
                }
            }
        }
        Ok(())
    }

    /// Puts the table into its place among those of its namespace, or takes it out.
    fn publish(
        &mut self,
        programs: &mut Programs,
        (netns, pf, name): &(u32, u32, String),
        new: Option<TableRef>,
    ) -> Result<(), BpfError> {
        let others = self
            .primed
            .iter()
            .filter(|((n, p, other), _)| n == netns && p == pf && other != name)
            .map(|(_, primed)| primed.reference);
        let mut tables = Tables::default();
        let all: Vec<TableRef> = others.chain(new).take(TABLES).collect();
        for (to, from) in tables.tables.iter_mut().zip(&all) {
            *to = *from;
        }
        let key = TablesKey {
            netns: *netns,
            pf: *pf,
        };
        let value = (!all.is_empty()).then_some(&tables);
        programs.set_entry("LEGACY_TABLES", &key, value)?;
        self.version = self.version.wrapping_add(1);
        programs.set_elements("LEGACY_VERSION", 0, &[self.version])
    }

    /// Gives back the blocks of a table that is no longer published, once no CPU works on them.
    fn release(&mut self, programs: &mut Programs, old: &Primed) -> Result<(), BpfError> {
        let mut search: Search = programs.element("LEGACY_SEARCH", 0)?;
        let found = search;
        search.first = old.blocks.start;
        search.blocks = 0;
        programs.set_elements("LEGACY_SEARCH", 0, &[search])?;
        let mut quiet = true;
        for cpu in cpus() {
            let mut tries = TRIES;
            while on_cpu(programs, 0, cpu)? == PRIME_BUSY {
                tries -= 1;
                if tries == 0 {
                    quiet = false;
                    break;
                }
            }
        }
        programs.set_elements("LEGACY_SEARCH", 0, &[found])?;
        // Blocks that may still be in use are never used again.
        if quiet {
            self.give_back(&old.blocks);
        }
        Ok(())
    }

    /// Sets `count` blocks in a row aside; if there are none, the longest row that is free.
    fn take(&mut self, count: usize) -> Result<Range<u32>, usize> {
        let (mut start, mut longest) = (0, 0);
        for end in 1..=self.used.len() {
            if self.used.get(end - 1).copied().unwrap_or(true) {
                start = end;
                continue;
            }
            longest = longest.max(end - start);
            if end - start == count {
                for used in self.used.iter_mut().take(end).skip(start) {
                    *used = true;
                }
                let bound = |n: usize| u32::try_from(n).map_err(|_| longest);
                return Ok(bound(start)?..bound(end)?);
            }
        }
        Err(longest)
    }

    fn give_back(&mut self, blocks: &Range<u32>) {
        for block in blocks.clone() {
            if let Some(used) = self.used.get_mut(block as usize) {
                *used = false;
            }
        }
    }
}

/// Runs `legacy_prime` on a CPU; its answer.
fn on_cpu(programs: &mut Programs, id: u32, cpu: u32) -> Result<u32, BpfError> {
    programs.run("legacy_prime", id.into(), Some(cpu))?;
    Ok(programs.element::<Search>("LEGACY_SEARCH", 0)?.status)
}

fn cpus() -> Vec<u32> {
    online_cpus().unwrap_or_default()
}

fn protocol(family: Family) -> u32 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

/// Whether it is a rule that sends something to the sender.
fn answers(table: &Table, terminal: &Terminal) -> bool {
    let chain = table.chains.get(terminal.chain);
    let rule = chain
        .zip(terminal.rule)
        .and_then(|(chain, rule)| chain.rules.get(rule));
    rule.is_some_and(|rule| matches!(rule.jump, Jump::Target(_)))
}

/// The entries of a table that drop all packets that they count, as the programs need them.
struct Terminals {
    blocks: Vec<Block>,
    refs: Vec<TerminalRef>,
    /// Hooks on which there is one.
    hooks: u32,
}

impl Terminals {
    /// `offsets`: where each entry begins. `queues`: user space hands packets back that it meets.
    fn of(table: &Table, offsets: &[u32], queues: bool) -> Self {
        let mut reached: BTreeMap<usize, (u32, u8)> = BTreeMap::new();
        for hook in 0..5 {
            for terminal in table.terminals(hook) {
                let place = offsets.binary_search(&terminal.offset);
                if let (Drops::Always, Ok(index)) = (terminal.drops, place) {
                    let entry = reached.entry(index).or_insert((terminal.offset, 0));
                    entry.1 |= 1 << hook;
                    if answers(table, &terminal) {
                        entry.1 |= ANSWERS;
                    }
                }
            }
        }
        let mut this = Self {
            blocks: Vec::new(),
            refs: Vec::with_capacity(reached.len()),
            hooks: 0,
        };
        for (index, (offset, hooks)) in reached {
            let (Ok(number), place) = (u32::try_from(index / BLOCK), index % BLOCK) else {
                continue;
            };
            if this.blocks.last().is_none_or(|last| last.number != number) {
                this.blocks.push(Block {
                    base: 0,
                    groups: [0; 8],
                    number,
                    pad: 0,
                    mask: [0; BLOCK],
                    hooks: [0; BLOCK],
                });
            }
            let Some(block) = this.blocks.last_mut() else {
                continue;
            };
            if let (Some(mask), Some(from)) =
                (block.mask.get_mut(place), block.hooks.get_mut(place))
            {
                *mask = u64::MAX;
                *from = hooks | if queues { QUEUED } else { 0 };
            }
            let group = 1 << (place / GROUP);
            for (hook, groups) in block.groups.iter_mut().enumerate() {
                if hook == ANY_HOOK || (hook < ANY_HOOK && hooks & 1 << hook != 0) {
                    *groups |= group;
                }
            }
            this.hooks |= u32::from(hooks & !ANSWERS);
            let (Ok(block), Ok(place)) =
                (u16::try_from(this.blocks.len() - 1), u16::try_from(place))
            else {
                continue;
            };
            this.refs.push(TerminalRef {
                offset,
                block,
                place,
            });
        }
        this
    }
}
